"""Choose the rows that an official file has, and tell every row that differs from it."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from data import schema
from data.prepare.build import Candidates
from data.prepare.formats import Row
from data.samples import row_task

if TYPE_CHECKING:
    import pandas as pd

COMPARED = ("dataset", "text_input", "ground_truth", "metric", "tok_input")
SHOWN = 60  # characters of a text from where it differs

Difference = dict[str, Any]  # row of the official file, its dataset, column, and both values


def rows_like(candidates: Candidates, official: "pd.DataFrame") -> dict[int, Row]:
    """The sources' row for each row of the official file, in its order, by its number there.

    A row is recognised by its question, whose white space may differ. Of several with the same
    question, and of several orders of the choices, the one with the official prompt is chosen. Rows
    that the sources lack are left out.

    Raises: ColumnsError if the official file lacks a column or names an unknown task.
    """
    schema.require(official, schema.FOR_RUN)
    known: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for task, rows in candidates.items():
        for variants in rows:
            known[task, _key(variants[0].question)] += variants
    chosen = {}
    for number, (name, question, text, _) in enumerate(
        zip(*(official[column] for column in schema.FOR_RUN), strict=True)
    ):
        same = known.get((row_task(number, name), _key(question)), [])
        if same:
            chosen[number] = next((row for row in same if row.text_input == text), same[0])
    return chosen


def differences(
    frame: "pd.DataFrame", numbers: Sequence[int], official: "pd.DataFrame"
) -> list[Difference]:
    """What differs between the frame's rows and those of the official file with these numbers.

    Columns that the official file lacks are not compared. Its rows without a number are reported as
    missing.
    """
    entries = [
        {"row": row, "dataset": official["dataset"].iloc[row], "column": None, "missing": True}
        for row in sorted(set(range(len(official))) - set(numbers))
    ]
    for column in COMPARED:
        if column in official.columns:
            ours, theirs = frame[column].tolist(), official[column].tolist()
            for position, row in enumerate(numbers):
                entries += _difference(row, column, ours[position], theirs[row], official)
    return sorted(entries, key=lambda one: one["row"])


def _difference(
    row: int, column: str, ours: Any, theirs: Any, official: "pd.DataFrame"
) -> Iterator[Difference]:
    place = {"row": row, "dataset": official["dataset"].iloc[row], "column": column}
    if column == "tok_input":
        ours, theirs = list(map(int, ours)), list(map(int, theirs))
    else:
        ours, theirs = str(ours), str(theirs)
    if ours == theirs:
        return
    same = sum(
        1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ours, theirs, strict=False))
    )
    shown = slice(same, same + (SHOWN if isinstance(ours, str) else 8))
    yield place | {"position": same, "ours": ours[shown], "official": theirs[shown]}


def _key(question: object) -> str:
    return " ".join(str(question).split())
