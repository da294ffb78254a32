"""A task's rules in a file each; here, an answer and its grade."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Answer:
    """What a model said to one sample, and what is right."""

    sample_index: int  # row in the frame that is graded
    task: str  # one of data.samples.TASKS
    text: str  # "" where nothing was said
    ground_truth: object  # as the data set holds it; None where it is missing


@dataclass(frozen=True)
class Verdict:
    """Whether an answer is right, and the rule that has decided it."""

    right: bool
    rule: str
    too_slow: bool = False  # wrong because it took too long


Status = Literal["ok", "wrong", "no_answer", "timeout", "sandbox_error", "not_graded"]


@dataclass(frozen=True)
class Grade:
    """What became of one answer.

    The last two statuses are no verdict: the row could not be judged, and a figure that counts it
    is not the figure.
    """

    sample_index: int  # row in the frame that is graded
    extracted: str | int | None  # None: no answer was found in the text
    status: Status
    rule: str  # how the answer was found and what has decided, e.g. "boxed, sympy"
    seconds: float  # spent on this row
    detail: str | None = None  # why there is no verdict

    @property
    def correct(self) -> bool:
        """Whether the answer is right."""
        return self.status == "ok"

    @property
    def judged(self) -> bool:
        """Whether there is a verdict. Too slow is one: it counts as wrong."""
        return self.status not in ("sandbox_error", "not_graded")
