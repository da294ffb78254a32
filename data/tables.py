"""Frames from parquet and JSON lines, and the conversion of every frame to plain columns.

A plain column holds numbers and text, lists and dictionaries of them, dates without a time zone, or
None: values that every version of pandas, and every reader here, can read.
"""

import datetime
import decimal
import json
import uuid
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any, BinaryIO

from data import kinds, pickles

if TYPE_CHECKING:
    import msgspec
    import numpy as np
    import pandas as pd

# A parquet file of a few bytes may hold one value a billion times: its rows may take
# ROOM + ROOM_A_BYTE * size of the file in memory.
MOST_ROWS = 1_000_000  # far above the benchmark's
ROOM = 256 << 20  # bytes
ROOM_A_BYTE = 32  # bytes per byte of the file
_KINDS = kinds.KEY.encode()
_BATCH = 128  # rows
_BATCH_ROOM = 512 << 20  # bytes of a batch if all its texts are as long as the longest
_PLAIN_CELLS = {type(None), str, int, float, bool, list}
_AS_TEXT = (decimal.Decimal, datetime.date, datetime.time, datetime.timedelta, uuid.UUID, complex)


def parquet(file: BinaryIO, only: Collection[str] | None = None) -> "pd.DataFrame":
    """A frame from parquet, of all columns or `only` these; lists of integers become int32 if they
    fit.

    Raises: ValueError for too many rows, or too much memory for the file's size; pyarrow's errors.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    room = ROOM + ROOM_A_BYTE * file.seek(0, 2)
    source = pq.ParquetFile(file, pre_buffer=False)
    if source.metadata.num_rows > MOST_ROWS:
        raise ValueError(f"it has {source.metadata.num_rows} rows, more than {MOST_ROWS}")
    _check_columns(source)
    schema = source.schema_arrow
    narrow = [
        field.with_type(pa.list_(pa.int32())) if _is_ids(source, field) else field
        for field in schema
    ]
    target = pa.schema(narrow, _understood(schema.metadata))
    # of a name that occurs twice both, which the caller refuses
    kept = [
        place
        for place, name in enumerate(schema.names)
        if only is None or name in only or schema.names.count(name) > 1
    ]
    # in batches: all token ids in 64 bits would take as much memory as everything else
    batches, size = [], 0
    for whole in source.iter_batches(_batch_rows(source)):
        batch = whole.cast(target)
        _check_texts(batch)
        batches.append(batch.select(kept))
        size += batch.nbytes
        if size > room:
            raise ValueError(
                f"its rows take more than {room >> 20} MB of memory, far more than the file's size"
            )
    target = pa.schema([target.field(place) for place in kept], target.metadata)
    table = pa.Table.from_batches(batches, target)
    frame = table.to_pandas()
    note = (schema.metadata or {}).get(_KINDS, b"{}")
    for name, kind in kinds.read_kinds(note, schema.names).items():
        if name not in frame:
            continue
        if kinds.NUMPY.fullmatch(kind):
            frame[name] = frame[name].astype(kind)
        else:
            frame[name] = _series(kinds.restore(table.column(name).to_pylist(), kind))
    return frame


def _understood(metadata: dict[bytes, bytes] | None) -> dict[bytes, bytes] | None:
    """A file's metadata without what pandas writes of Arrow-backed lists, but can't read."""
    if not metadata or b"pandas" not in metadata:
        return metadata
    about = json.loads(metadata[b"pandas"])
    for column in about.get("columns", ()):
        if "<" in str(column.get("numpy_type")):
            column["numpy_type"] = "object"
    return metadata | {b"pandas": json.dumps(about).encode()}


def json_lines(file: BinaryIO) -> "pd.DataFrame":
    """A frame from JSON, one object per line. Raises: ValueError naming the line."""
    import pandas as pd

    rows = _json_rows(file)
    for key in {key for row in rows for key in row}:
        key.encode()  # half of a surrogate pair would be found when results are written
    note = rows[0].pop(kinds.KEY, {}) if rows else {}
    # as objects: pandas' own text type would keep a second copy of every text
    frame = pd.DataFrame(rows, dtype=object)
    kind_of = kinds.read_kinds(note, frame.columns)
    for name in frame:
        if name in kind_of:
            missing = frame[name].isna()
            cells = frame[name].mask(missing, None).tolist()
            frame[name] = _series(kinds.restore(cells, kind_of[name]))
        elif frame[name].map(type).isin((int, float)).all():
            frame[name] = frame[name].infer_objects()
    return frame


def _series(values: "np.ndarray") -> "pd.Series":
    """A column of these values; pandas would make its own text type of objects."""
    import pandas as pd

    return pd.Series(values, dtype=values.dtype)


def plain(frame: "pd.DataFrame") -> "pd.DataFrame":
    """A copy of the frame with plain columns, and its rows numbered from 0."""
    copy = frame.reset_index(drop=True)
    for name, column in copy.items():
        copy[name] = _plain(column)
    return copy


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
    series = pd.Series(cells, column.index, dtype=object)
    numbers = set(map(type, cells)) <= {bool, int, float}
    return series.infer_objects() if numbers and not isinstance(kind, np.dtype) else series


def _plain_cell(cell: Any) -> Any:
    import pandas as pd

    if cell is pd.NA or cell is pd.NaT:
        return None
    if isinstance(cell, datetime.date | datetime.time):
        return cell.isoformat()
    if isinstance(cell, _AS_TEXT) or type(cell).__module__.startswith("pandas."):
        return str(cell)
    return cell


def _check_texts(batch: Any) -> None:
    """Raises: pyarrow's error for a text that is not UTF-8, which would fail only when used."""
    import pyarrow as pa

    for column in batch.columns:
        if not (pa.types.is_list(column.type) and pa.types.is_integer(column.type.value_type)):
            column.validate(full=True)


def _check_columns(source: Any) -> None:
    """Raises: pyarrow's errors for a footer whose columns contradict the schema.

    pyarrow's own access to a column's metadata ends the process there; reading a row raises.
    """
    for group in range(source.metadata.num_row_groups):
        next(source.iter_batches(1, [group]), None)


def _batch_rows(source: Any) -> int:
    """How many rows to read at once, in case all of them refer to the longest text."""
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
    """Whether a column holds lists of integers that fit int32, by the file's statistics."""
    import pyarrow as pa

    lists = pa.types.is_list(field.type) or pa.types.is_large_list(field.type)
    if not (lists and pa.types.is_integer(field.type.value_type)):
        return False
    footer = source.metadata
    groups = [footer.row_group(number) for number in range(footer.num_row_groups)]
    for group in groups:
        for number in range(group.num_columns):
            column = group.column(number)
            if column.path_in_schema.split(".")[0] != field.name:
                continue
            statistics = column.statistics
            if statistics is None or not statistics.has_min_max:
                return False
            if statistics.min < -(1 << 31) or statistics.max >= 1 << 31:
                return False
    return True


def _json_rows(file: BinaryIO) -> list[dict[str, Any]]:
    # pandas' own reader turns "042" into 42 and dates into timestamps; answers must not change
    import msgspec

    raw_values = msgspec.json.Decoder(dict[str, msgspec.Raw])
    rows = []
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            row = _quick_row(line, raw_values)
            if row is None:
                row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"),
                                 object_pairs_hook=_unique)  # fmt: skip
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number}, column {error.colno}: {error.msg}") from error
        except (ValueError, RecursionError) as error:
            raise ValueError(f"line {number}: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"line {number} is not an object")
        rows.append({name: _compact(value) for name, value in row.items()})
    return rows


def _quick_row(line: bytes, raw_values: "msgspec.json.Decoder[Any]") -> dict[str, Any] | None:
    """The object in a line that is written as here, its token ids read by NumPy; else None."""
    import msgspec

    try:
        raws = {name: bytes(raw) for name, raw in raw_values.decode(line).items()}
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None
    # {"name": value, ...}: where a name occurs twice, the line is longer than this
    if len(line.rstrip()) != sum(len(name.encode()) + len(raws[name]) + 6 for name in raws):
        return None
    try:
        return {
            name: _JSON.decode(raw.decode()) if (ids := _ids(raw)) is None else ids
            for name, raw in raws.items()
        }
    except ValueError:
        return None  # and where in the line it is will be found


def _ids(raw: bytes) -> "np.ndarray | None":
    """A long list of whole numbers in valid JSON; None for anything else."""
    import numpy as np

    if not raw.startswith(b"[") or len(raw) < 2 * pickles.MANY:
        return None
    if raw.translate(None, b"0123456789-, ") != b"[]":
        return None
    ids = np.fromstring(raw[1:-1], np.int64, sep=",")
    if len(ids) < pickles.MANY:
        return None
    least, most = int(ids.min()), int(ids.max())
    if least == -(1 << 63) or most == (1 << 63) - 1:
        return None  # a number beyond 64 bits is read as one of these
    return ids.astype(np.int32) if least >= -(1 << 31) and most < 1 << 31 else ids


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    pairs = list(pairs)
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        duplicate = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {duplicate[:80]!a} occurs twice")
    return row


_JSON = json.JSONDecoder(object_pairs_hook=_unique)


def _compact(value: Any) -> Any:
    return (
        pickles.compact(value) if type(value) is list and set(map(type, value)) == {int} else value
    )
