"""Compare two evaluated files: the rows that they grade differently."""

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING

from data import schema
from errors import ColumnsError, GradingError
from terminal import one_line, quoted

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("dataset", "ground_truth", "extracted_answer", "prompt_accuracy")
_SHOWN = 40  # characters of an answer


@dataclass(frozen=True)
class Flip:
    """A row that one grading has right and the other one wrong."""

    row: int  # its sample_index, or its position
    dataset: str  # on one line, as the answers are
    answers: tuple[str, str]  # each with its verdict and the rule that found it
    first_right: bool  # else the second

    def __str__(self) -> str:
        return f"row {self.row}, {self.dataset}: {' | '.join(self.answers)}"


@dataclass(frozen=True)
class Comparison:
    """Two gradings of the same rows. Counts are numbers of rows."""

    rows: int
    both: int  # are right
    neither: int
    flips: tuple[Flip, ...]

    @property
    def only_first(self) -> int:
        """Rows that the first has right and the second wrong."""
        return sum(flip.first_right for flip in self.flips)

    @property
    def only_second(self) -> int:
        """Rows that the second has right and the first wrong."""
        return len(self.flips) - self.only_first

    @property
    def exact_match(self) -> tuple[float, float]:
        """Of each, in percent."""
        first, second = (self.both + count for count in (self.only_first, self.only_second))
        return 100 * first / self.rows, 100 * second / self.rows

    @property
    def p(self) -> float:
        """McNemar's exact test: how likely so unequal flips are by chance alone."""
        return mcnemar(self.only_first, self.only_second)

    def __str__(self) -> str:
        first, second = self.exact_match
        head = (
            f"rows {self.rows}, both right {self.both}, neither {self.neither},"
            f" only the first {self.only_first}, only the second {self.only_second}",
            f"exact_match {first:.4f} and {second:.4f}; McNemar's exact test: p = {self.p:.4g}",
        )
        return "\n".join([*head, *map(str, self.flips)])


def comparison(first: "pd.DataFrame", second: "pd.DataFrame") -> Comparison:
    """How many rows both, one or neither of two evaluated frames has right, and which differ.

    Rows are paired by sample_index if both frames have it, else by position.

    Raises: ColumnsError if a frame is not evaluated; GradingError if their rows are not the same.
    """
    for frame in (first, second):
        schema.require(frame, COLUMNS)
        _require_numbers(frame)
    if all("sample_index" in frame.columns for frame in (first, second)):
        first, second = (frame.set_index("sample_index").sort_index() for frame in (first, second))
    if not (first.index.equals(second.index) and first.index.is_unique):
        raise GradingError(
            f"the two files have different rows ({len(first)} and {len(second)}): compare two"
            " gradings of the same data set"
        )
    for name in ("dataset", "ground_truth"):
        for row, *pair in zip(first.index, first[name], second[name], strict=True):
            if str(pair[0]) != str(pair[1]):
                raise GradingError(
                    f"the two files have different rows: {name} of row {row} differs: compare two"
                    " gradings of the same data set"
                )
    first_right, second_right = (
        frame["prompt_accuracy"].to_numpy() > 0 for frame in (first, second)
    )
    flips = tuple(
        Flip(
            int(row),
            one_line(str(first["dataset"].loc[row])),
            (_answer(first.loc[row]), _answer(second.loc[row])),
            bool(first["prompt_accuracy"].loc[row] > 0),
        )
        for row in first.index[first_right != second_right]
    )
    both, neither = (first_right & second_right).sum(), (~first_right & ~second_right).sum()
    return Comparison(len(first), int(both), int(neither), flips)


def _require_numbers(frame: "pd.DataFrame") -> None:
    """Raises: ColumnsError naming a row whose accuracy or index is not a number."""
    for name, kind in (("prompt_accuracy", Real), ("sample_index", Integral)):
        if name in frame.columns:
            for row, value in enumerate(frame[name]):
                if not isinstance(value, kind) or value != value:
                    raise ColumnsError(f"row {row}: {name} is {quoted(value)}, not a number")


def mcnemar(one: int, two: int) -> float:
    """McNemar's exact test: the two-sided p-value of `one` and `two` differing rows."""
    count = one + two
    tail = sum(math.comb(count, k) for k in range(min(one, two) + 1))
    return min(1.0, 2 * tail / 2**count)


def _answer(row: "pd.Series") -> str:
    answer = one_line(" ".join(str(row["extracted_answer"]).split()))
    short = answer if len(answer) <= _SHOWN else answer[: _SHOWN - 1] + "…"
    verdict = "right" if row["prompt_accuracy"] > 0 else "wrong"
    rule = f" ({one_line(str(row['grading_rule']))})" if "grading_rule" in row.index else ""
    return f"{short} {verdict}{rule}"
