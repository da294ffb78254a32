"""The schema of data sets and result files: every column, in one place.

`python -m data.schema` prints it as the table of docs/data.md. The columns are those of the
official file, of the endpoints benchmark's parquet of the same rows (`input_tokens` instead of
`tok_input`, and no `text_input`), and those that this project adds.
"""

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import entrypoint
from errors import ColumnsError
from terminal import quoted

if TYPE_CHECKING:
    import pandas as pd

RUN, GRADING, OPTIONAL = "run", "grading", "-"


@dataclass(frozen=True)
class Column:
    """A column of a data set or a result file."""

    name: str
    kind: str  # of its values, with their unit
    use: str  # what it is for
    needed: tuple[str, ...] = ()  # by RUN (run_eval, run_mlperf) and GRADING (eval_accuracy)
    spellings: tuple[str, ...] = ()  # other names of the same column


DATA_SET = (
    Column(
        "dataset",
        "text",
        "name of the source, which selects the task: aime, gpqa, livecodebench, math500, mmlu_pro",
        (RUN, GRADING),
    ),
    Column("question", "text", "the question alone, for people, and to recognise the row", (RUN,)),
    Column(
        "text_input",
        "text",
        "the prompt before the chat template is applied; a file without it runs from `tok_input`",
        (RUN,),
    ),
    Column(
        "ground_truth",
        "text or number",
        "the right answer; of LiveCodeBench the problem's id",
        (RUN, GRADING),
    ),
    Column(
        "tok_input",
        "token ids",
        "the prompt's ids with the chat template; used as they are if there is no `text_input`",
        spellings=("input_tokens",),
    ),
    Column("tok_input_len", "tokens", "length of `tok_input`"),
    Column("metric", "text", "name of the metric; the task decides here"),
    Column("templated_text_input", "text", "the prompt with the chat template; not used"),
    Column("ref_output", "text", "the reference's answer; not used"),
    Column("tok_ref_output", "token ids", "the reference's answer; not used"),
    Column("tok_ref_output_len", "tokens", "length of the reference's answer; not used"),
    Column("ref_extracted_answer", "text", "the answer in `ref_output`; not used"),
    Column("ref_accuracy", "percent", "100 if the reference's answer is right, else 0; not used"),
)
RESULTS = (
    Column("sample_index", "row, from 0", "row of the run's data set; without skipped rows"),
    Column("query_id", "number", "LoadGen's id of the query, or the row"),
    Column("model_output", "text", "the answer, with the reasoning", (GRADING,)),
    Column("tok_model_output", "token ids", "the answer, without the stop id"),
    Column("tok_model_output_len", "tokens", "length of the answer", (GRADING,)),
    Column("finish", "text", "why the answer ended: stop or length"),
    Column("model_backend", "text", "the engine"),
)
GRADED = (
    Column("extracted_answer", "text", "the answer that was found in `model_output`"),
    Column("prompt_accuracy", "percent", "100 if it is right, else 0"),
    Column("grading_status", "text", "ok, no_answer, timeout, sandbox_error or not_graded"),
    Column("grading_rule", "text", "the rule by which the answer was found"),
    Column("grading_detail", "text", "more about the verdict"),
    Column("lenient_accuracy", "percent", "with --lenient, by math-verify"),
)
COLUMNS = {column.name: column for column in (*DATA_SET, *RESULTS, *GRADED)}
FOR_RUN = tuple(name for name, column in COLUMNS.items() if RUN in column.needed)
FOR_GRADING = tuple(name for name, column in COLUMNS.items() if GRADING in column.needed)
TEXT, IDS, LENGTH = "text_input", "tok_input", "tok_input_len"


def spelling(columns: Iterable[object], name: str) -> str | None:
    """The name under which a frame has a column; None if it has it under none."""
    column, present = COLUMNS[name], set(columns)
    return next((one for one in (name, *column.spellings) if one in present), None)


def require(frame: "pd.DataFrame", names: Sequence[str]) -> None:
    """Check that a frame has the columns `names`; token ids do for a missing text_input.

    Raises: ColumnsError naming the missing columns and those present.
    """
    has_ids = spelling(frame.columns, IDS) is not None
    missing = [
        " or ".join((TEXT, IDS, *COLUMNS[IDS].spellings)) if name == TEXT else name
        for name in names
        if name not in frame.columns and not (name == TEXT and has_ids)
    ]
    if missing:
        raise ColumnsError(
            f"missing columns: {', '.join(missing)} (present: {', '.join(map(str, frame.columns))})"
        )


def token_ids(frame: "pd.DataFrame") -> list[tuple[int, ...]]:
    """The token ids of the prompts in a frame that has them.

    Raises: ColumnsError naming row and column of a cell that is not a list of token ids, or whose
    length is not what tok_input_len says.
    """
    name = spelling(frame.columns, IDS)
    assert name is not None
    rows = [_ids(cell, row, name) for row, cell in enumerate(frame[name])]
    if LENGTH in frame.columns:
        for row, (length, ids) in enumerate(zip(frame[LENGTH], rows, strict=True)):
            if length != len(ids):
                raise ColumnsError(
                    f"row {row}: {LENGTH} is {quoted(length)}, but {name} has {len(ids)} token ids"
                )
    return rows


def _ids(cell: Any, row: int, name: str) -> tuple[int, ...]:
    import numpy as np

    if isinstance(cell, np.ndarray) and cell.ndim == 1 and cell.dtype.kind in "iu":
        cell = cell.tolist()
    if not isinstance(cell, list) or set(map(type, cell)) - {int}:
        raise ColumnsError(f"row {row}: {name} is {quoted(cell, 60)}, not a list of token ids")
    if not cell:
        raise ColumnsError(f"row {row}: {name} has no token ids")
    return tuple(cell)


def table() -> str:
    """The schema in Markdown."""
    lines = []
    for title, columns in (
        ("Data set", DATA_SET),
        ("Added by a run", RESULTS),
        ("Added by grading", GRADED),
    ):
        lines += [
            f"*{title}*",
            "",
            "| column | values | needed for | meaning |",
            "|---|---|---|---|",
        ]
        for column in columns:
            names = ", ".join(f"`{name}`" for name in (column.name, *column.spellings))
            needed = ", ".join(column.needed) or OPTIONAL
            lines.append(f"| {names} | {column.kind} | {needed} | {column.use} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    argparse.ArgumentParser(
        prog="python -m data.schema", description="Print all columns as tables in Markdown."
    ).parse_args()
    print(table())


if __name__ == "__main__":
    entrypoint.run(main)
