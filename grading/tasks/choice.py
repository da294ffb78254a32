"""Multiple choice: GPQA (A to D) and MMLU-Pro (A to J).

Format: the prompt asks for a last line `ANSWER: X`. Rules: the `eval_accuracy.py` of the MLPerf
DeepSeek-R1 reference, quirks included (`answer a dog` is A; a bold `**Answer:** B` is no answer).
"""

import re

from grading.tasks import Verdict

LETTERS = {"gpqa": "A-D", "mmlu_pro": "A-J"}

# ANSWER as a word, or right after FINAL. Spelling out both cases of the first letter makes the
# search four times as fast; possessive quantifiers keep it linear over long runs of white space.
_ANSWER = {
    task: re.compile(
        r"[Aa](?i:(?<=\b.)|(?<=\bFINAL.))"
        rf"(?i:NSWER\b\s*+[:=]?\s*+\(?\s*+([{letters}])(?![A-Za-z]))"
    )
    for task, letters in LETTERS.items()
}
_LONE_LETTER = re.compile(r"\b[A-J]\b", re.IGNORECASE)
_END = 500  # characters at the end of a text, where nearly every answer is
_BEFORE = 10  # characters before a match that may decide whether it is one


def extract(text: str, task: str) -> tuple[str, str] | None:
    """The last letter after ANSWER, else in MMLU-Pro the last lone letter; and the rule's name.

    The letter is in upper case. None if there is no such letter.
    """
    if text.startswith(("['", '["')) and text.endswith(("']", '"]')):
        text = text[2:-2].strip()
    if letter := _last(_ANSWER[task], text):
        return letter.upper(), "answer line"
    if task == "mmlu_pro" and (letter := _last(_LONE_LETTER, text)):
        return letter.upper(), "lone letter"
    return None


def _last(pattern: re.Pattern[str], text: str) -> str | None:
    """The letter in the last match. Matches can't overlap, so the end is searched first."""
    letters = pattern.findall(_unescape(text[-_END:]), _BEFORE)
    letters = letters or pattern.findall(_unescape(text))
    return letters[-1] if letters else None


def _unescape(text: str) -> str:
    return text.replace(r"\n", "\n").replace(r"\'", "'")


def judge(answer: str, truth: object) -> Verdict:
    """Whether the letters are equal, ignoring case; the truth is not stripped of white space."""
    # a search that ignores case also matches letters such as İ, which are never right
    return Verdict(answer.isascii() and answer == str(truth).upper(), "letter")
