"""Multiple choice: GPQA (A to D) and MMLU-Pro (A to J).

Format: the prompt asks for a last line `ANSWER: X`. Rules: the `eval_accuracy.py` of the MLPerf
DeepSeek-R1 reference, oddities included (`answer a dog` gives A; a bold `**Answer:** B` nothing).
"""

import re

from grading.tasks import Verdict

LETTERS = {"gpqa": "A-D", "mmlu_pro": "A-J"}

# ANSWER as a word, after FINAL even without a blank. A first letter that does not ignore case makes
# the search four times as fast; possessive blanks keep it linear over tens of thousands of them.
_ANSWER = {
    task: re.compile(
        r"[Aa](?i:(?<=\b.)|(?<=\bFINAL.))"
        rf"(?i:NSWER\b\s*+[:=]?\s*+\(?\s*+([{letters}])(?![A-Za-z]))"
    )
    for task, letters in LETTERS.items()
}
_LONE_LETTER = re.compile(r"\b[A-J]\b", re.IGNORECASE)
_END = 500  # characters, in which nearly every answer is found
_BEFORE = 10  # characters that may decide whether what follows them matches


def extract(text: str, task: str) -> tuple[str, str] | None:
    """The last letter announced as the answer; in MMLU-Pro else the last letter standing alone.

    In upper case, with the name of the rule that found it.
    """
    if text.startswith(("['", '["')) and text.endswith(("']", '"]')):
        text = text[2:-2].strip()
    if found := _last(_ANSWER[task], text):
        return found.upper(), "answer line"
    if task == "mmlu_pro" and (found := _last(_LONE_LETTER, text)):
        return found.upper(), "lone letter"
    return None


def _last(pattern: re.Pattern[str], text: str) -> str | None:
    """What the last match captures: no two can overlap, so the end of a text is searched first."""
    found = pattern.findall(_unescaped(text[-_END:]), _BEFORE) or pattern.findall(_unescaped(text))
    return found[-1] if found else None


def _unescaped(text: str) -> str:
    return text.replace(r"\n", "\n").replace(r"\'", "'")


def judge(given: str, truth: object) -> Verdict:
    """Whether the letters agree, in either case; the truth is taken as it stands, blanks too."""
    # a letter as foreign as İ is found by a search that ignores case, and is never right
    return Verdict(given.isascii() and given == str(truth).upper(), "letter")
