"""The samples that two runs have both answered, side by side."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from errors import ColumnsError
from grading.compare import Comparison, comparison
from mlperf.compare.runs import Run

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

CONTEXT = 80  # characters of a text before and after the place where two answers part
# Two data sets are the same if these columns are, in the rows that both runs have.
IDENTITY = ("dataset", "question", "text_input", "ground_truth")


@dataclass(frozen=True)
class Difference:
    """Two answers to a sample that are not the same tokens."""

    sample_index: int
    token: int  # position of the first one that differs, from 0
    lengths: tuple[int, int]  # tokens
    before: str  # the end of what the texts share
    after: tuple[str, str]  # of each text, what follows; equal if only the tokens differ


@dataclass(frozen=True)
class Samples:
    """What two runs answered to the samples that both have."""

    lengths: "tuple[np.ndarray, np.ndarray]"  # tokens of each answer, in the order of the rows
    finishes: int  # samples that end by another finish reason
    differences: tuple[Difference, ...]  # in the order of the rows
    grades: Comparison | None  # None unless both runs are graded

    def __len__(self) -> int:
        return len(self.lengths[0])

    @property
    def alike(self) -> int:
        """Samples with the same token ids."""
        return len(self) - len(self.differences)

    @property
    def median_token(self) -> int | None:
        """Where answers part that do, in the median."""
        positions = sorted(difference.token for difference in self.differences)
        return positions[len(positions) // 2] if positions else None

    @property
    def mean_lengths(self) -> tuple[float, float]:
        """Tokens of an answer."""
        first, second = (float(lengths.mean()) for lengths in self.lengths)
        return first, second


def other_data(first: Run, second: Run) -> str | None:
    """Why the rows of two runs are not the same; None if they are, or a run has no answers."""
    if first.answers is None or second.answers is None:
        return None
    one, two = _shared(first.answers, second.answers)
    if one.empty:
        return f"{first.name} and {second.name} have no row in common"
    names = [name for name in IDENTITY if name in one.columns and name in two.columns]
    if not {"question", "text_input"} & {*names}:
        return f"{first.name} and {second.name} have no questions to recognise the rows by"
    for name in names:
        for row, ours, theirs in zip(one.index, one[name], two[name], strict=True):
            if str(ours) != str(theirs):
                return f"another data set: {name} of row {row} differs"
    return None


def other_rows(first: Run, second: Run) -> str | None:
    """Why the figures are not of the same rows, though their data set is the same."""
    if first.answers is None or second.answers is None:
        return None
    if first.answers.index.sort_values().equals(second.answers.index.sort_values()):
        return None
    return f"{first.name} answered {len(first.answers)} rows, {second.name} {len(second.answers)}"


def compare_samples(first: Run, second: Run) -> Samples:
    """Compare the answers to the rows that two runs of the same data set have both.

    Raises: ColumnsError if answers are not token ids and text, or grades not numbers.
    """
    assert first.answers is not None
    assert second.answers is not None
    one, two = _shared(first.answers, second.answers)
    ids = _ids(first, one), _ids(second, two)
    texts = _texts(first, one), _texts(second, two)
    differences = [
        _difference(int(row), pair, text)
        for row, pair, text in zip(
            one.index, zip(*ids, strict=True), zip(*texts, strict=True), strict=True
        )
    ]
    both_finish = "finish" in one.columns and "finish" in two.columns
    grades = None
    if first.graded and second.graded:
        grades = comparison(one.reset_index(drop=True), two.reset_index(drop=True))
    return Samples(
        (_lengths(ids[0]), _lengths(ids[1])),
        int((one["finish"] != two["finish"]).sum()) if both_finish else 0,
        tuple(difference for difference in differences if difference),
        grades,
    )


def _shared(first: "pd.DataFrame", second: "pd.DataFrame") -> "tuple[pd.DataFrame, pd.DataFrame]":
    rows = first.index.intersection(second.index).sort_values()
    return first.loc[rows], second.loc[rows]


def _difference(
    row: int, ids: "tuple[np.ndarray, np.ndarray]", texts: tuple[str, str]
) -> Difference | None:
    token = first_difference(*ids)
    if token is None:
        return None
    start = _common(*texts)
    return Difference(
        row,
        token,
        (len(ids[0]), len(ids[1])),
        texts[0][max(start - CONTEXT, 0) : start],
        (texts[0][start : start + CONTEXT], texts[1][start : start + CONTEXT]),
    )


def first_difference(first: "np.ndarray", second: "np.ndarray") -> int | None:
    """The first position at which two answers differ, as one may by its end; None if none does."""
    shorter = min(len(first), len(second))
    unequal = (first[:shorter] != second[:shorter]).nonzero()[0]
    if len(unequal):
        return int(unequal[0])
    return None if len(first) == len(second) else shorter


def _common(first: str, second: str) -> int:
    """Characters that two texts share at their beginning, by bisection."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first[:middle] == second[:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _ids(run: Run, frame: "pd.DataFrame") -> "list[np.ndarray]":
    import numpy as np

    for row, cell in zip(frame.index, frame["tok_model_output"], strict=True):
        if not (isinstance(cell, np.ndarray) and cell.ndim == 1 and cell.dtype.kind in "iu"):
            raise ColumnsError(f"{run.folder}: row {row}: tok_model_output is not token ids")
    return list(frame["tok_model_output"])


def _texts(run: Run, frame: "pd.DataFrame") -> list[str]:
    for row, cell in zip(frame.index, frame["model_output"], strict=True):
        if not isinstance(cell, str):
            raise ColumnsError(f"{run.folder}: row {row}: model_output is not text")
    return list(frame["model_output"])


def _lengths(ids: "list[np.ndarray]") -> "np.ndarray":
    import numpy as np

    return np.array([len(one) for one in ids])
