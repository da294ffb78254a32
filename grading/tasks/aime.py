"""AIME: an integer from 0 to 999.

Format: the prompt asks for `\\boxed{N}`. Rules: the `eval_accuracy.py` of the MLPerf DeepSeek-R1
reference.
"""

import re
from decimal import Decimal
from fractions import Fraction
from typing import Any

from grading.tasks import Verdict

_BOXED = re.compile(r"\\boxed{\s*+(\d++)\s*+}")
_ANSWER = re.compile(r"Answer:\s*+(\d++)(?![\w.])", re.IGNORECASE)


def extract(text: str) -> tuple[int, str] | None:
    """The last boxed integer; where there is no box at all, the last `Answer: N`; and which."""
    for rule, pattern in (("boxed", _BOXED), ("answer line", _ANSWER)):
        if found := pattern.findall(text):
            try:
                number = int(found[-1])
            except ValueError:  # thousands of digits
                return None
            return (number, rule) if number <= 999 else None
    return None


def judge(given: int, truth: Any) -> Verdict:
    """Whether the truth, read by `int`, is the number; a truth `int` can't read equals nothing."""
    try:
        # a decimal's or fraction's int may have a billion digits
        if isinstance(truth, Decimal | Fraction) and not -1000 < truth < 1000:
            return Verdict(False, "integer")
        return Verdict(int(truth) == given, "integer")
    except (ValueError, TypeError, ArithmeticError):
        return Verdict(False, "truth is no integer")
