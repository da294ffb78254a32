"""AIME: an integer from 0 to 999.

Format: the prompt asks for `\\boxed{N}`. Rules: the `eval_accuracy.py` of the MLPerf DeepSeek-R1
reference.
"""

import re
from typing import Any

_BOXED = re.compile(r"\\boxed{\s*+(\d++)\s*+}")
_ANSWER = re.compile(r"Answer:\s*+(\d++)(?![\w.])", re.IGNORECASE)


def extract(text: str) -> int | None:
    """The last boxed integer; where there is no box at all, the last `Answer: N`."""
    found = _BOXED.findall(text) or _ANSWER.findall(text)
    if not found:
        return None
    try:
        number = int(found[-1])
    except ValueError:  # thousands of digits
        return None
    return number if number <= 999 else None


def equal(given: int, truth: Any) -> bool:
    """Whether the truth, read by `int`, is the number; a truth `int` can't read equals nothing."""
    try:
        return int(truth) == given
    except (ValueError, TypeError, OverflowError):
        return False
