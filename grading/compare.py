"""Compare two evaluated files: the rows that they grade differently."""

import math
from numbers import Integral, Real
from typing import TYPE_CHECKING

from data import schema
from errors import ColumnsError, GradingError
from terminal import one_line, quoted

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("dataset", "ground_truth", "extracted_answer", "prompt_accuracy")
_SHOWN = 40  # characters of an answer


def comparison(first: "pd.DataFrame", second: "pd.DataFrame") -> str:
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
    only_first, only_second = first_right & ~second_right, second_right & ~first_right
    one, two = int(only_first.sum()), int(only_second.sum())
    lines = [
        f"rows {len(first)}, both right {int((first_right & second_right).sum())},"
        f" neither {int((~first_right & ~second_right).sum())},"
        f" only the first {one}, only the second {two}",
        f"exact_match {100 * first_right.mean():.4f} and {100 * second_right.mean():.4f};"
        f" McNemar's exact test: p = {mcnemar(one, two):.4g}",
    ]
    for row in first.index[only_first | only_second]:
        answers = " | ".join(_answer(frame.loc[row]) for frame in (first, second))
        lines.append(f"row {row}, {one_line(str(first['dataset'].loc[row]))}: {answers}")
    return "\n".join(lines)


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
