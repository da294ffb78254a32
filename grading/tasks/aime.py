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
    """The last boxed integer, or without any box the last `Answer: N`; and the rule's name.

    None if there is neither, or the integer is above 999.
    """
    for rule, pattern in (("boxed", _BOXED), ("answer line", _ANSWER)):
        if matches := pattern.findall(text):
            try:
                number = int(matches[-1])
            except ValueError:  # more digits than Python converts
                return None
            return (number, rule) if number <= 999 else None
    return None


def judge(answer: int, truth: Any) -> Verdict:
    """Whether `int(truth)` equals the answer; a truth that is not an integer equals nothing."""
    try:
        # int() of a decimal or fraction may have a billion digits
        if isinstance(truth, Decimal | Fraction) and not -1000 < truth < 1000:
            return Verdict(False, "integer")
        return Verdict(int(truth) == answer, "integer")
    except (ValueError, TypeError, ArithmeticError):
        return Verdict(False, "truth is no integer")
