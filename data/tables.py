"""Frames from parquet and JSON lines, and what all frames are made: plain columns.

A plain column holds numbers and text, lists and dictionaries of them, dates without a zone, or
None: what every pandas can read, and every reader here.
"""

import datetime
import decimal
import json
import uuid
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, BinaryIO

from data import pickles

if TYPE_CHECKING:
    import pandas as pd

# A parquet file may hold one value a billion times in a few bytes.
MOST_ROWS = 1_000_000  # far above the benchmark's
ROOM = 256 << 20  # bytes of all rows in memory, and
ROOM_A_BYTE = 32  # more, a byte of the file
_BATCH = 128  # rows
_BATCH_ROOM = 512 << 20  # bytes of a batch whose texts are all as long as can be
_PLAIN_CELLS = {type(None), str, int, float, bool, list}
_AS_TEXT = (decimal.Decimal, datetime.date, datetime.time, datetime.timedelta, uuid.UUID, complex)


def parquet(file: BinaryIO) -> "pd.DataFrame":
    """A frame from parquet; lists of integers come as int32 where that holds them.

    Errors: ValueError for more rows, or more of a few bytes, than any data set has; pyarrow's.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    room = ROOM + ROOM_A_BYTE * file.seek(0, 2)
    source = pq.ParquetFile(file, pre_buffer=False)
    if source.metadata.num_rows > MOST_ROWS:
        raise ValueError(f"it has {source.metadata.num_rows} rows, more than {MOST_ROWS}")
    schema = source.schema_arrow
    narrow = [
        field.with_type(pa.list_(pa.int32())) if _is_ids(source, field) else field
        for field in schema
    ]
    target = pa.schema(narrow, schema.metadata)
    # in batches: the whole of it in 64 bits would take as much memory as all the rest
    batches, held = [], 0
    for batch in source.iter_batches(_batch_rows(source)):
        batches.append(batch.cast(target))
        held += batches[-1].nbytes
        if held > room:
            raise ValueError(f"its rows take more than {room >> 20} MB, far more than its size")
    return pa.Table.from_batches(batches, target).to_pandas()


def json_lines(file: BinaryIO) -> "pd.DataFrame":
    """A frame from JSON, one object a line. Errors: ValueError naming the line."""
    import pandas as pd

    # as objects, since pandas' own type of text would be a second copy beside the first
    frame = pd.DataFrame(_json_rows(file), dtype=object)
    for name in frame:
        if frame[name].map(type).isin((int, float)).all():
            frame[name] = frame[name].infer_objects()
    return frame


def plain(frame: "pd.DataFrame") -> "pd.DataFrame":
    """The frame with plain columns, and its rows numbered from 0."""
    made = frame.reset_index(drop=True)
    for name, column in made.items():
        made[name] = _plain(column)
    return made


def _plain(column: "pd.Series") -> "pd.Series":
    import numpy as np
    import pandas as pd

    kind = column.dtype
    if isinstance(kind, pd.StringDtype):
        return column
    if isinstance(kind, np.dtype):
        if kind.kind in "biufM":
            return column
        if kind.kind == "O" and set(map(type, column.array)) <= _PLAIN_CELLS | {np.ndarray}:
            return column
    cells = [_plain_cell(cell) for cell in column.array]
    made = pd.Series(cells, column.index, dtype=object)
    numbers = set(map(type, cells)) <= {bool, int, float}
    return made.infer_objects() if numbers and not isinstance(kind, np.dtype) else made


def _plain_cell(cell: Any) -> Any:
    import pandas as pd

    if cell is pd.NA or cell is pd.NaT:
        return None
    if isinstance(cell, datetime.date | datetime.time):
        return cell.isoformat()
    if isinstance(cell, _AS_TEXT) or type(cell).__module__.startswith("pandas."):
        return str(cell)
    return cell


def _batch_rows(source: Any) -> int:
    """How many rows to read at once: all may refer to the longest text of their group."""
    footer = source.metadata
    longest = max(
        (
            column.total_uncompressed_size
            for group in map(footer.row_group, range(footer.num_row_groups))
            for column in map(group.column, range(group.num_columns))
            if column.physical_type == "BYTE_ARRAY"
        ),
        default=1,
    )
    return min(_BATCH, max(1, _BATCH_ROOM // max(longest, 1)))


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
        try:
            row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"),
                             object_pairs_hook=_once)  # fmt: skip
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number}, column {error.colno}: {error.msg}") from error
        except (ValueError, RecursionError) as error:
            raise ValueError(f"line {number}: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"line {number} is not an object")
        rows.append({name: _compact(value) for name, value in row.items()})
    return rows


def _once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    pairs = list(pairs)
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice[:80]!a} is there twice")
    return made


def _compact(value: Any) -> Any:
    return (
        pickles.compact(value) if type(value) is list and set(map(type, value)) == {int} else value
    )
