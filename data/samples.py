"""Data sets and result files in: read a frame safely, check it, turn its rows into samples."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from data import pickles
from data.tasks import task_of
from ref_dsinfer.errors import ColumnsError, EmptyDataError, InputFileError

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("dataset", "question", "text_input", "ground_truth")
PICKLES = (".pkl", ".pickle")


@dataclass(frozen=True)
class Sample:
    """One row of the data set."""

    index: int  # row in the data set, from 0
    task: str  # canonical name, one of data.tasks.TASKS
    question: str
    prompt_text: str  # instructions and question, chat template not applied
    ground_truth: object  # as the data set holds it: text, a number, or a missing value


def read_frame(path: str | Path) -> "pd.DataFrame":
    """Read a frame from a pickle, a parquet file or JSON lines; rows are numbered from 0.

    A pickle is read without running what it names: only the types of a plain frame are admitted.
    Lists of token ids come as arrays, of int32 where that holds them.

    Errors: InputFileError where there is no such file, or it is no frame; EmptyDataError.
    """
    import pandas as pd

    path = Path(path)
    kind = path.suffix.lower()
    if kind not in (*PICKLES, ".parquet", ".jsonl"):
        raise InputFileError(f"{path}: expected a .pkl, .pickle, .parquet or .jsonl file")
    try:
        with path.open("rb") as file:
            if kind == ".parquet":
                frame: object = _parquet(file)
            elif kind == ".jsonl":
                frame = _of_rows(_json_rows(file))
            else:
                frame = pickles.load(file)
    except OSError as error:
        raise InputFileError(f"{path}: can't be read: {error.strerror or error}") from error
    except Exception as error:  # damaged input makes these libraries raise nearly anything
        raise InputFileError(f"{path}: not a {kind} data frame: {_first_line(error)}") from error
    if not isinstance(frame, pd.DataFrame):
        raise InputFileError(f"{path}: holds a {type(frame).__name__}, not a data frame")
    if frame.empty:
        raise EmptyDataError(f"{path}: the data frame has no rows")
    return frame.reset_index(drop=True)


def require_columns(frame: "pd.DataFrame", columns: Sequence[str]) -> None:
    """Errors: ColumnsError naming the columns that are missing and those that are there."""
    missing = [name for name in columns if name not in frame.columns]
    if missing:
        raise ColumnsError(
            f"missing columns: {', '.join(missing)} (present: {', '.join(map(str, frame.columns))})"
        )


def samples(frame: "pd.DataFrame") -> list[Sample]:
    """The rows of a data set as samples, in order.

    Errors: ColumnsError for missing columns, a prompt that is not text, an unknown data set name.
    """
    require_columns(frame, COLUMNS)
    rows = []
    for index, (name, question, text, truth) in enumerate(
        zip(*(frame[column] for column in COLUMNS), strict=True)
    ):
        if not isinstance(text, str):
            raise ColumnsError(f"row {index}: text_input is {type(text).__name__}, not text")
        rows.append(Sample(index, row_task(index, name), str(question), text, truth))
    return rows


def row_task(index: int, name: object) -> str:
    """The task of row `index`, whose data set is `name`. Errors: ColumnsError naming both."""
    try:
        return task_of(name)
    except ValueError as error:
        raise ColumnsError(f"row {index}: {error}") from error


def _parquet(file: BinaryIO) -> "pd.DataFrame":
    import pyarrow as pa
    import pyarrow.parquet as pq

    source = pq.ParquetFile(file, pre_buffer=False)
    schema = source.schema_arrow
    narrow = [
        field.with_type(pa.list_(pa.int32())) if _is_ids(source, field) else field
        for field in schema
    ]
    target = pa.schema(narrow, schema.metadata)
    # in batches: the whole of it in 64 bits would take as much memory as all the rest
    batches = [batch.cast(target) for batch in source.iter_batches(128)]
    return pa.Table.from_batches(batches, target).to_pandas()


def _is_ids(source: Any, field: Any) -> bool:
    """Whether a column holds lists of integers within int32, by the file's own statistics."""
    import pyarrow as pa

    if not (pa.types.is_list(field.type) and pa.types.is_integer(field.type.value_type)):
        return False
    footer = source.metadata
    groups = [footer.row_group(number) for number in range(footer.num_row_groups)]
    for group in groups:
        for number in range(group.num_columns):
            column = group.column(number)
            if column.path_in_schema.split(".")[0] != field.name:
                continue
            found = column.statistics
            if found is None or not found.has_min_max:
                return False
            if found.min < -(1 << 31) or found.max >= 1 << 31:
                return False
    return True


def _json_rows(file: BinaryIO) -> list[dict[str, Any]]:
    # pandas' own reader turns "042" into 42 and dates into timestamps; answers must stay as written
    rows = []
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        row = json.loads(line)
        if not isinstance(row, dict):
            raise ValueError(f"line {number} is not an object")
        rows.append({name: _compact(value) for name, value in row.items()})
    return rows


def _of_rows(rows: list[dict[str, Any]]) -> "pd.DataFrame":
    import pandas as pd

    # as objects, since pandas' own type of text would be a second copy beside the first
    frame = pd.DataFrame(rows, dtype=object)
    for name in frame:
        if frame[name].map(type).isin((int, float)).all():
            frame[name] = frame[name].infer_objects()
    return frame


def _compact(value: Any) -> Any:
    return (
        pickles.compact(value) if type(value) is list and set(map(type, value)) == {int} else value
    )


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
