"""Smaller data sets that represent the whole one, and how far their figures may be off.

The strata are the tasks, each divided into four parts by the prompts' lengths. Each gets its share
of the subset's rows, chosen at random by a seed. How far the figures may be off follows from the
strata: a row's score is taken as one with its stratum's mean, independent of the other rows.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from math import sqrt
from statistics import mean, pstdev
from typing import TYPE_CHECKING, Any

from benchmark import ANSWER_TOKENS, ANSWER_TOKENS_DEVIATION, TASK_SCORES
from data import schema
from data.samples import require_text, row_task
from errors import ColumnsError
from terminal import quoted

if TYPE_CHECKING:
    import pandas as pd

PARTS = 4  # of a task, by length
Z = 1.96  # standard errors on either side of 95 % of a normal distribution


@dataclass(frozen=True)
class Stratum:
    """Rows that are alike, and what is expected of their answers."""

    task: str
    rows: Sequence[int]  # of the data set
    shortest: float  # prompt in tokens, or in characters if the data set has no token counts
    longest: float
    score: float  # percent
    tokens: float  # of an answer, on average
    deviation: float  # of an answer's tokens


@dataclass(frozen=True)
class Margin:
    """How a subset's figure differs from the whole set's."""

    bias: float  # on average
    standard_error: float
    low: float  # the difference is between these two for 95 % of subsets
    high: float


def strata(frame: "pd.DataFrame", stratified: bool) -> list[Stratum]:
    """The strata of a data set, or all of it as a single one.

    Raises: ColumnsError if a column is missing, a task unknown, or a number none or too large.
    """
    schema.require(frame, ("dataset", "text_input"))
    tasks = [row_task(row, name) for row, name in enumerate(frame["dataset"])]
    require_text(frame, ("text_input",))
    sizes: Sequence[float] = frame["text_input"].map(len).tolist()
    if "tok_input_len" in frame.columns:
        sizes = _numbers(frame, "tok_input_len")
    if not stratified:
        return [_stratum(frame, "all", tasks, sizes, range(len(frame)))]
    groups = []
    for task in sorted(set(tasks)):
        rows = sorted(
            (row for row, name in enumerate(tasks) if name == task), key=lambda row: sizes[row]
        )
        bounds = [len(rows) * part // PARTS for part in range(PARTS + 1)]
        groups += [
            _stratum(frame, task, tasks, sizes, rows[start:end])
            for start, end in pairwise(bounds)
            if end > start
        ]
    return groups


def shares(sizes: Sequence[int], count: int) -> list[int]:
    """`count` divided in proportion to `sizes`, of which none is exceeded; largest remainders."""
    whole = sum(sizes)
    parts = [count * size // whole for size in sizes]
    order = sorted(range(len(sizes)), key=lambda one: (-(count * sizes[one] % whole), one))
    for one in order[: count - sum(parts)]:
        parts[one] += 1
    return parts


def draw(groups: Sequence[Stratum], count: int, seed: int) -> list[list[int]]:
    """`count` rows of the data set, by stratum: each has its share, chosen by the seed.

    The choice does not depend on the versions of Python or NumPy.
    """
    counts = shares([len(group.rows) for group in groups], count)
    return [
        sorted(sorted(group.rows, key=lambda row: _lot(row, seed))[:size])
        for group, size in zip(groups, counts, strict=True)
    ]


def margins(groups: Sequence[Stratum], drawn: Sequence[Sequence[int]]) -> dict[str, Margin]:
    """How far the subset's score (percentage points) and tokens_per_sample may be off."""
    return {
        "score": _margin(
            groups,
            drawn,
            [group.score for group in groups],
            [sqrt(group.score * (100 - group.score)) for group in groups],
        ),
        "tokens_per_sample": _margin(
            groups,
            drawn,
            [group.tokens for group in groups],
            [group.deviation for group in groups],
        ),
    }


def describe(
    frame: "pd.DataFrame", groups: Sequence[Stratum], drawn: Sequence[Sequence[int]]
) -> dict[str, Any]:
    """What the manifest says of a subset."""
    rows = [row for part in drawn for row in part]
    summary: dict[str, Any] = {
        "rows": len(rows),
        "of": len(frame),
        "strata": [
            {
                "task": group.task,
                "length": [group.shortest, group.longest],
                "rows": len(part),
                "of": len(group.rows),
            }
            for group, part in zip(groups, drawn, strict=True)
        ],
        "margins": {name: _rounded(one) for name, one in margins(groups, drawn).items()},
    }
    if "tok_input_len" in frame.columns:
        lengths = frame["tok_input_len"]
        summary["prompt_tokens"] = {
            "mean": round(float(lengths.iloc[rows].mean()), 1),
            "whole_mean": round(float(lengths.mean()), 1),
        }
    return summary


def in_words(summary: dict[str, Any]) -> str:
    """What a person should know of a subset."""
    score, tokens = (summary["margins"][name] for name in ("score", "tokens_per_sample"))
    lines = [
        f"{summary['rows']} of {summary['of']} rows."
        " For 95 of 100 such subsets, as expected of R1:",
        f"  the score differs from the whole set's by {score['low']:+.2f} to {score['high']:+.2f}"
        f" percentage points (standard error {score['standard_error']:.2f})",
        f"  tokens_per_sample differs by {tokens['low']:+.0f} to {tokens['high']:+.0f}"
        f" (standard error {tokens['standard_error']:.0f})",
    ]
    if lengths := summary.get("prompt_tokens"):
        lines.append(
            f"  prompts have {lengths['mean']} tokens on average, the whole set's"
            f" {lengths['whole_mean']}"
        )
    return "\n".join(lines)


def _stratum(
    frame: "pd.DataFrame",
    task: str,
    tasks: Sequence[str],
    sizes: Sequence[float],
    rows: Sequence[int],
) -> Stratum:
    lengths = [sizes[row] for row in rows]
    part = frame.iloc[list(rows)]
    if "ref_accuracy" in part.columns:  # the official file's: R1's own
        score = mean(_numbers(part, "ref_accuracy", 100))
    else:
        score = mean(TASK_SCORES[tasks[row]] for row in rows)
    tokens, deviation = ANSWER_TOKENS, ANSWER_TOKENS_DEVIATION
    if "tok_ref_output_len" in part.columns:
        answers = _numbers(part, "tok_ref_output_len")
        tokens, deviation = mean(answers), pstdev(answers)
    return Stratum(task, rows, min(lengths), max(lengths), score, tokens, deviation)


def _margin(
    groups: Sequence[Stratum],
    drawn: Sequence[Sequence[int]],
    means: Sequence[float],
    deviations: Sequence[float],
) -> Margin:
    """How far the drawn rows' mean may be off, for rows of these means and deviations.

    For n drawn of N rows, the difference is the sum of all rows' values, each times 1/n - 1/N or,
    if the row is not drawn, times -1/N.
    """
    n, whole = sum(map(len, drawn)), sum(len(group.rows) for group in groups)
    bias = variance = 0.0
    for group, part, value, deviation in zip(groups, drawn, means, deviations, strict=True):
        size = len(group.rows)
        bias += (len(part) / n - size / whole) * value
        weights = len(part) * (1 / n - 1 / whole) ** 2 + (size - len(part)) / whole**2
        variance += weights * deviation**2
    width = Z * sqrt(variance)
    return Margin(bias, sqrt(variance), bias - width, bias + width)


def _numbers(frame: "pd.DataFrame", name: str, most: float = 1e9) -> list[float]:
    """A column of numbers from 0 to `most`. Raises: ColumnsError naming the row of another cell."""
    cells = frame[name].tolist()
    for row, cell in zip(frame.index, cells, strict=True):
        if not (isinstance(cell, int | float) and 0 <= cell <= most):
            raise ColumnsError(f"row {row}: {name} is {quoted(cell)}, not a number up to {most:g}")
    return cells


def _rounded(one: Margin) -> dict[str, float]:
    return {name: round(value, 3) for name, value in asdict(one).items()}


def _lot(row: int, seed: int) -> bytes:
    return hashlib.sha256(f"{seed} {row}".encode()).digest()
