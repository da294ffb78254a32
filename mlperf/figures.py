"""The figures of a graded run, and how they stand to the official limits."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

# The rules of round v6.1 for the whole data set
ROWS = 4388  # of the benchmark's data set
EXACT_MATCH_MIN = 0.99 * 81.3582  # percent
TOKENS_MIN, TOKENS_MAX = 0.9 * 3886.2274, 1.1 * 3886.2274  # a sample


@dataclass(frozen=True)
class Totals:
    """The figures of one task, or of all."""

    task: str  # or "all"
    rows: int
    exact_match: float  # percent of all rows
    tokens_per_sample: float
    no_answer: int  # rows in which no answer was found
    truncated: int  # rows cut at the length limit
    errors: int  # rows that could not be judged; they count as wrong


@dataclass(frozen=True)
class Evaluation:
    """A graded frame and its figures."""

    frame: "pd.DataFrame"  # as given, with extracted_answer, prompt_accuracy and grading_error
    tasks: Sequence[Totals]  # of the tasks that occur
    total: Totals

    @property
    def exact_match(self) -> float:
        """Percent of all rows that are right."""
        return self.total.exact_match

    @property
    def tokens_per_sample(self) -> float:
        """Mean length of an answer in tokens."""
        return self.total.tokens_per_sample

    @property
    def result_line(self) -> str:
        """The line the official submission checker looks for."""
        figures: dict[str, float] = {
            "exact_match": self.exact_match,
            "tokens_per_sample": self.tokens_per_sample,
            "num-samples": self.total.rows,
        }
        return str(figures)

    @property
    def whole(self) -> bool:
        """Whether these are the rows of the whole data set, for which alone the limits hold."""
        return self.total.rows == ROWS

    @property
    def accurate(self) -> bool:
        """Whether exact_match reaches its limit."""
        return self.exact_match >= EXACT_MATCH_MIN

    @property
    def length_fits(self) -> bool:
        """Whether tokens_per_sample is within its limits."""
        return TOKENS_MIN <= self.tokens_per_sample <= TOKENS_MAX

    @property
    def verdict(self) -> str:
        """How the figures stand to the official limits, which hold for the whole data set only."""
        if not self.whole:
            return f"not comparable with the official limits: {self.total.rows} of {ROWS} rows"
        right, long = self.accurate, self.length_fits
        return (
            f"{'valid' if right and long else 'NOT VALID'}:"
            f" exact_match {'reaches' if right else 'is below'} {EXACT_MATCH_MIN:.4f},"
            f" tokens_per_sample is {'within' if long else 'outside'}"
            f" {TOKENS_MIN:.1f} to {TOKENS_MAX:.1f}"
        )

    def table(self) -> str:
        """The figures as aligned text, one line a task."""
        head = ("task", "rows", "exact_match", "tokens/sample", "no answer", "truncated", "errors")
        lines = [("{:<14}{:>6}{:>13}{:>15}{:>11}{:>11}{:>8}").format(*head)]
        lines += [
            f"{row.task:<14}{row.rows:>6}{row.exact_match:>13.2f}{row.tokens_per_sample:>15.1f}"
            f"{row.no_answer:>11}{row.truncated:>11}{row.errors:>8}"
            for row in (*self.tasks, self.total)
        ]
        return "\n".join(lines)
