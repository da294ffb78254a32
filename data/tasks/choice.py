"""Multiple choice: GPQA (A to D) and MMLU-Pro (A to J).

Format: the prompt asks for a last line `ANSWER: X`. Rules: the `eval_accuracy.py` of the MLPerf
DeepSeek-R1 reference, oddities included (`answer a dog` gives A; a bold `**Answer:** B` nothing).
"""

import re

LETTERS = {"gpqa": "A-D", "mmlu_pro": "A-J"}

# The possessive blanks keep a search over tens of thousands of blanks linear.
_ANSWER = {
    task: re.compile(
        rf"\b(?:FINAL\s*+)?ANSWER\b\s*+[:=]?\s*+\(?\s*+([{letters}])(?![A-Za-z])", re.IGNORECASE
    )
    for task, letters in LETTERS.items()
}
_LONE_LETTER = re.compile(r"\b[A-J]\b", re.IGNORECASE)


def extract(text: str, task: str) -> str | None:
    """The last letter announced as the answer; in MMLU-Pro else the last letter standing alone."""
    if text.startswith(("['", '["')) and text.endswith(("']", '"]')):
        text = text[2:-2].strip()
    text = text.replace(r"\n", "\n").replace(r"\'", "'")
    found = [match[1] for match in _ANSWER[task].finditer(text)]
    if not found and task == "mmlu_pro":
        found = _LONE_LETTER.findall(text)
    return found[-1].upper() if found else None


def equal(given: str, truth: object) -> bool:
    """Whether the letters agree, in either case; the truth is taken as it stands, blanks too."""
    return given == str(truth).upper()
