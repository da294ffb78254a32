"""The tasks' rules, one file each, and the types that they share: an answer and its grade."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Answer:
    """A model's answer to one sample, and the right answer."""

    sample_index: int  # row in the frame that is graded
    task: str  # one of data.samples.TASKS
    text: str  # "" if it is missing
    ground_truth: object  # as in the data set; None if it is missing


@dataclass(frozen=True)
class Verdict:
    """Whether an answer is right, and the rule that decided it."""

    right: bool
    rule: str
    too_slow: bool = False  # wrong because it took too long


Status = Literal["ok", "wrong", "no_answer", "timeout", "sandbox_error", "not_graded"]


@dataclass(frozen=True)
class Grade:
    """The result of grading one answer.

    The last two statuses mean that the row could not be judged: a figure that includes it is not
    valid.
    """

    sample_index: int  # row in the frame that is graded
    extracted: str | int | None  # None: no answer was found in the text
    status: Status
    rule: str  # the rules that found the answer and decided, such as "boxed, sympy"
    seconds: float  # spent on this row
    detail: str | None = None  # why the answer was not compared

    @property
    def correct(self) -> bool:
        """Whether the answer is right."""
        return self.status == "ok"

    @property
    def judged(self) -> bool:
        """Whether there is a verdict. A timeout is one: it counts as wrong."""
        return self.status not in ("sandbox_error", "not_graded")
