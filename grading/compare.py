"""Two evaluated files by the rows in which they disagree."""

import math
from numbers import Integral, Real
from typing import TYPE_CHECKING

from data.samples import require_columns
from errors import ColumnsError, GradingError
from terminal import one_line, quoted

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("dataset", "ground_truth", "extracted_answer", "prompt_accuracy")
_SHOWN = 40  # characters of an answer


def comparison(first: "pd.DataFrame", second: "pd.DataFrame") -> str:
    """How often both, either or none of two evaluated frames is right, and every row between.

    Rows are paired by sample_index where both frames have it, else by their place.

    Raises: ColumnsError if a frame is not evaluated; GradingError if they are not of the same
    rows.
    """
    for frame in (first, second):
        require_columns(frame, COLUMNS)
        _require_numbers(frame)
    if all("sample_index" in frame.columns for frame in (first, second)):
        first, second = (frame.set_index("sample_index").sort_index() for frame in (first, second))
    if not (first.index.equals(second.index) and first.index.is_unique):
        raise GradingError(f"not of the same rows: {len(first)} and {len(second)} to be compared")
    for name in ("dataset", "ground_truth"):
        for row, *pair in zip(first.index, first[name], second[name], strict=True):
            if str(pair[0]) != str(pair[1]):
                raise GradingError(f"not of the same rows: {name} of row {row} differs")
    right, other = (frame["prompt_accuracy"].to_numpy() > 0 for frame in (first, second))
    only_first, only_second = right & ~other, other & ~right
    one, two = int(only_first.sum()), int(only_second.sum())
    lines = [
        f"rows {len(first)}, both right {int((right & other).sum())},"
        f" neither {int((~right & ~other).sum())},"
        f" the first alone {one}, the second alone {two}",
        f"exact_match {100 * right.mean():.4f} and {100 * other.mean():.4f};"
        f" McNemar's exact test: p = {mcnemar(one, two):.4g}",
    ]
    for row in first.index[only_first | only_second]:
        told = [_answer(frame.loc[row]) for frame in (first, second)]
        name = one_line(str(first["dataset"].loc[row]))
        lines.append(f"row {row}, {name}: {told[0]} | {told[1]}")
    return "\n".join(lines)


def _require_numbers(frame: "pd.DataFrame") -> None:
    """Raises: ColumnsError naming the row."""
    for name, kind in (("prompt_accuracy", Real), ("sample_index", Integral)):
        if name in frame.columns:
            for row, value in enumerate(frame[name]):
                if not isinstance(value, kind) or value != value:
                    raise ColumnsError(f"row {row}: {name} is {quoted(value)}, not a number")


def mcnemar(one: int, two: int) -> float:
    """How likely a split at least as uneven as this is, were both equally good. Two-sided."""
    count = one + two
    tail = sum(math.comb(count, k) for k in range(min(one, two) + 1))
    return min(1.0, 2 * tail / 2**count)


def _answer(row: "pd.Series") -> str:
    given = one_line(" ".join(str(row["extracted_answer"]).split()))
    short = given if len(given) <= _SHOWN else given[: _SHOWN - 1] + "…"
    verdict = "right" if row["prompt_accuracy"] > 0 else "wrong"
    rule = f" ({one_line(str(row['grading_rule']))})" if "grading_rule" in row.index else ""
    return f"{short} {verdict}{rule}"
