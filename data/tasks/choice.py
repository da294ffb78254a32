"""Multiple choice: GPQA (A to D) and MMLU-Pro (A to J).

Format: the prompt asks for a last line `ANSWER: X`. Rules: the `eval_accuracy.py` of the MLPerf
DeepSeek-R1 reference, oddities included (`answer a dog` gives A; a bold `**Answer:** B` nothing).
"""

import re

from data.tasks import Verdict

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


def extract(text: str, task: str) -> tuple[str, str] | None:
    """The last letter announced as the answer; in MMLU-Pro else the last letter standing alone.

    In upper case, with the name of the rule that found it.
    """
    if text.startswith(("['", '["')) and text.endswith(("']", '"]')):
        text = text[2:-2].strip()
    text = text.replace(r"\n", "\n").replace(r"\'", "'")
    if found := _ANSWER[task].findall(text):
        return found[-1].upper(), "answer line"
    if task == "mmlu_pro" and (found := _LONE_LETTER.findall(text)):
        return found[-1].upper(), "lone letter"
    return None


def judge(given: str, truth: object) -> Verdict:
    """Whether the letters agree, in either case; the truth is taken as it stands, blanks too."""
    # a letter as foreign as İ is found by a search that ignores case, and is never right
    return Verdict(given.isascii() and given == str(truth).upper(), "letter")
