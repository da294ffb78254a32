"""Write frames as pickle, parquet or JSON lines, so that reading them gives the same values.

The same values are: text, numbers of the same kind, lists, dictionaries and bytes, missing values,
and columns of the same NumPy type. No difference is made between lists, tuples and arrays of the
same values, and between missing values.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data import kinds, pickles
from errors import ColumnsError

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

ROW_GROUP = 512  # rows that are converted at once: a copy of all rows could fill the memory
Count = Callable[[int], object]  # called with the number of rows that have just been written


def write(frame: "pd.DataFrame", path: Path, ending: str, count: Count = lambda rows: None) -> None:
    """Write a frame as a file of the kind of `ending`: .pkl, .pickle, .parquet or .jsonl.

    Raises: OSError; ColumnsError naming what the file can't hold.
    """
    if ending == ".parquet":
        write_parquet(frame, path, count)
    elif ending == ".jsonl":
        write_json_lines(frame, path, count)
    else:
        write_pickle(frame, path)
        count(len(frame))


def write_pickle(frame: "pd.DataFrame", path: Path) -> None:
    """Raises: OSError."""
    import pandas as pd

    # pandas before 3 can't read its text type
    texts = {
        str(name): pd.Series(kinds.objects(cells_of(column)), column.index, dtype=object)
        for name, column in frame.items()
        if isinstance(column.dtype, pd.StringDtype)
    }
    pickles.dump(frame.assign(**texts), path)


def write_parquet(frame: "pd.DataFrame", path: Path, count: Count = lambda rows: None) -> None:
    """Raises: OSError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = [_ParquetColumn(str(name), column) for name, column in frame.items()]
    kind_of = {column.name: column.kind for column in columns if column.kind}
    fields = [(column.name, column.type) for column in columns]
    schema = pa.schema(fields, {kinds.KEY: json.dumps(kind_of)} if kind_of else None)
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, len(frame), ROW_GROUP):
            rows = slice(start, start + ROW_GROUP)
            table = pa.table([column.part(rows) for column in columns], schema=schema)
            writer.write_table(table)
            count(table.num_rows)


def write_json_lines(frame: "pd.DataFrame", path: Path, count: Count = lambda rows: None) -> None:
    """Raises: OSError; ColumnsError for a column named like `kinds.KEY`."""
    names = [str(name) for name in frame.columns]
    if kinds.KEY in names:
        raise ColumnsError(f"column {kinds.KEY}: rename it: JSON lines have another use for it")
    kind_of = {str(name): kind for name, column in frame.items() if (kind := _json_kind(column))}
    header = {kinds.KEY: kind_of} if kind_of else {}
    with path.open("wb") as file:
        for start in range(0, len(frame), ROW_GROUP):
            part = frame.iloc[start : start + ROW_GROUP]
            columns = [map(kinds.tagged, cells_of(column)) for _, column in part.items()]
            for cells in zip(*columns, strict=True):
                file.write(_line(header | dict(zip(names, cells, strict=True))))
                header = {}
            count(len(part))


class _ParquetColumn:
    """How a column is stored in parquet: its type, and its kind if the type does not tell it."""

    def __init__(self, name: str, column: "pd.Series") -> None:
        import pyarrow as pa

        self.name = name
        self.kind: str | None = None
        self._column = column
        self._convert: Callable[[Any], Any] | None = None
        if _is_numpy(column):
            self.kind, self.type = str(column.dtype), pa.from_numpy_dtype(column.dtype)
        elif not self._has_type(cells_of(column)):
            self.kind, self.type = kinds.JSON, pa.large_string()
            self._convert = lambda cell: json.dumps(kinds.tagged(cell))

    def part(self, rows: slice) -> "pa.Array":
        """The values of some rows."""
        import pyarrow as pa

        part = self._column.iloc[rows]
        if _is_numpy(part):
            return pa.array(part.to_numpy(), self.type)
        cells = cells_of(part)
        if self._convert:
            cells = [None if cell is None else self._convert(cell) for cell in cells]
        return pa.array(cells, self.type)

    def _has_type(self, cells: list[Any]) -> bool:
        """Set type and kind of a column of objects; False if only JSON can say what they are."""
        import pyarrow as pa

        types = set(map(type, cells)) - {type(None)}
        native = {int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
        if types <= kinds.SCALARS and not _is_unicode(cells):
            return False
        if types == {bytes}:
            self.type = pa.large_binary()
        elif types <= {str}:
            self.type = pa.large_string()
        elif len(types) == 1 and (type_ := native.get(next(iter(types)))) and _fits(cells, type_):
            self.kind, self.type = kinds.OBJECT, type_
        elif types <= kinds.SCALARS:
            self.kind, self.type, self._convert = kinds.mixed(cells), pa.large_string(), str
        elif bits := _id_bits(cells):
            self.type = pa.list_(pa.int32() if bits == 32 else pa.int64())
        else:
            return False
        return True


def _json_kind(column: "pd.Series") -> str | None:
    """The kind of a column that a reader of JSON lines could not tell from its values."""
    if _is_numpy(column):
        obvious = str(column.dtype) in ("int64", "float64") and not column.isna().any()
        return None if obvious else str(column.dtype)
    cells = cells_of(column)
    if set(map(type, cells)) <= {int, float}:
        return kinds.OBJECT
    return kinds.TAGGED if any(kinds.has_tags(kinds.tagged(cell)) for cell in cells) else None


def _line(row: dict[str, Any]) -> bytes:
    try:
        return json.dumps(row, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # half of a surrogate pair
        return json.dumps(row).encode() + b"\n"


def _is_numpy(column: "pd.Series") -> bool:
    import numpy as np

    return isinstance(column.dtype, np.dtype) and column.dtype.kind in "biufM"


def cells_of(column: "pd.Series") -> list[Any]:
    """The values of a column as Python has them, a missing one as None, times as text."""
    import numpy as np

    if column.dtype.kind == "M":
        column = column.to_numpy().astype(str).astype(object)  # type: ignore[assignment]
        return [None if text == "NaT" else text for text in column]
    values = [cell.item() if isinstance(cell, np.generic) else cell for cell in column.tolist()]
    for row in np.flatnonzero(column.isna().to_numpy()).tolist():
        values[row] = None
    return values


def _is_unicode(cells: list[Any]) -> bool:
    try:
        for cell in cells:
            if isinstance(cell, str):
                cell.encode()
    except UnicodeEncodeError:
        return False
    return True


def _fits(cells: list[Any], type_: "pa.DataType") -> bool:
    import pyarrow as pa

    try:
        pa.array(cells, type_)
    except (pa.ArrowException, OverflowError):
        return False
    return True


def _id_bits(cells: list[Any]) -> int | None:
    """32 or 64 if all values that are not missing are lists of integers of so many bits."""
    import numpy as np

    bits = 32
    for cell in cells:
        if cell is None:
            continue
        if type(cell) in (list, tuple) and set(map(type, cell)) <= {int}:
            ends = (min(cell), max(cell)) if cell else (0, 0)
        elif isinstance(cell, np.ndarray) and cell.ndim == 1 and cell.dtype.kind in "iu":
            ends = (int(cell.min()), int(cell.max())) if cell.size else (0, 0)
        else:
            return None
        if not -(1 << 31) <= ends[0] <= ends[1] < 1 << 31:
            bits = 64
        if not -(1 << 63) <= ends[0] <= ends[1] < 1 << 63:
            return None
    return bits
