"""Build a data frame from a parsed pickle (`data.pickles.structure`), block by block.

Categories, nullable numbers, dates and the like become plain columns: text, numbers, lists, None.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from data.pickles import arrow
from data.pickles.structure import Call, Name, Pairs, UnsupportedPickle
from data.pickles.values import (
    Cells,
    array_of,
    class_of,
    is_array,
    kind_of,
    object_array,
    objects_of,
)
from errors import ColumnsError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd


MOST_COLUMNS = 10_000
_UNKNOWN_LABELS = "unsupported row or column labels: call reset_index() before writing the file"


def is_frame(value: object) -> bool:
    """Whether a parsed pickle is a data frame."""
    return isinstance(value, Call) and class_of(value) == "DataFrame"


def describe(value: object) -> str:
    """The type of a parsed pickle, for a message."""
    if isinstance(value, Call):
        return f"a {class_of(value)}"
    return f"a {'dict' if isinstance(value, Pairs) else type(value).__name__}"


def build(value: object, size: int) -> "pd.DataFrame":
    """The frame of a parsed pickle of `size` bytes; its rows are numbered from 0.

    Raises: ColumnsError naming column and row of an unsupported cell; UnsupportedPickle, or an
    exception of numpy's, if the frame is damaged.
    """
    import pandas as pd

    state = value.state if isinstance(value, Call) else None
    manager = state.get("_mgr") if isinstance(state, Pairs) else None
    if not isinstance(manager, Call) or class_of(manager) != "BlockManager":
        raise UnsupportedPickle("its data frame has no blocks of columns")
    match manager.arguments:
        case (tuple() as blocks, list() as axes) if len(axes) == 2:
            pass
        case _:
            raise UnsupportedPickle("its data frame lacks blocks or axes")
    cells = Cells(size)
    names = [str(name) for name in _labels(axes[0], cells)]
    if len(names) > MOST_COLUMNS:
        raise UnsupportedPickle(f"it has {len(names)} columns, more than {MOST_COLUMNS}")
    if not all(map(_is_text, names)):
        raise UnsupportedPickle("a column's name is not valid Unicode")
    rows = _length(axes[1], cells)
    columns: dict[int, Any] = {}
    for block in blocks:
        for number, column in _block(block, names, rows, cells):
            if number in columns:
                raise UnsupportedPickle(f"it has column {number} twice")
            columns[number] = column
    if sorted(columns) != list(range(len(names))):
        raise UnsupportedPickle(f"it names {len(names)} columns but holds {len(columns)}")
    # dtypes are passed on, or pandas would look for a narrower one in columns of objects
    series = {n: pd.Series(column, dtype=column.dtype) for n, column in sorted(columns.items())}
    frame = pd.DataFrame(series, index=range(rows) if names else None)
    return frame.set_axis(names, axis=1)


def _block(
    block: object, names: Sequence[str], rows: int, cells: Cells
) -> Iterator[tuple[int, Any]]:
    """Number and values of each column of a block. Raises: ColumnsError; UnsupportedPickle."""
    match block:
        case Call(Name(_, "_unpickle_block" | "new_block"), (values, placement, *_)):
            pass
        case _:
            raise UnsupportedPickle("its data frame holds something that is not a block of columns")
    numbers = _placement(placement, len(names))
    block_names = ", ".join(names[number] for number in numbers)
    try:
        if is_array(values):
            if kind_of(values) == "O":
                yield from _objects(values, numbers, names, rows, cells)
                return
            columns = list(_rows(array_of(values)))
            cells.spend(sum(map(len, columns)))
        else:
            columns = _extension(values, cells)
    except UnsupportedPickle as error:
        raise ColumnsError(_with_advice(f"column {block_names}: {error}")) from error
    if len(columns) != len(numbers) or any(len(column) != rows for column in columns):
        raise UnsupportedPickle(f"column {block_names}: its length is not the frame's, {rows} rows")
    yield from zip(numbers, columns, strict=True)


def _objects(
    values: Call, numbers: Sequence[int], names: Sequence[str], rows: int, cells: Cells
) -> Iterator[tuple[int, Any]]:
    """The columns of an object array of shape [columns, rows]."""
    shape, content, order = objects_of(values)
    if shape != (len(numbers), rows):
        raise UnsupportedPickle(
            f"column {', '.join(names[n] for n in numbers)}: its shape is {shape}"
        )
    for position, number in enumerate(numbers):
        part = (
            content[position * rows : (position + 1) * rows]
            if order == "C"
            else content[position :: len(numbers)]
        )
        column = []
        for row, cell in enumerate(part):
            try:
                column.append(cells.plain(cell))
            except UnsupportedPickle as error:
                raise ColumnsError(
                    _with_advice(f"column {names[number]}, row {row}: it holds {error}")
                ) from error
        yield number, object_array(column)


def _with_advice(message: str) -> str:
    return f"{message}: convert it to text, numbers or lists"


def _extension(values: object, cells: Cells) -> list[Any]:
    """The columns of a block with one of pandas' extension types."""
    if not isinstance(values, Call):
        raise UnsupportedPickle(f"a block of {type(values).__name__}")
    kind, state = class_of(values), values.state
    if kind in ("StringArray", "Categorical", "DatetimeArray", "TimedeltaArray"):
        if not isinstance(state, tuple):
            raise UnsupportedPickle(f"a {kind} without its values")
        arrays = [part for part in state if is_array(part)]
        if len(arrays) != 1:
            raise UnsupportedPickle(f"a {kind} without its values")
        if kind == "Categorical":
            return [_categories(state, array_of(arrays[0]), cells)]
        if kind == "StringArray":
            shape, content, _ = objects_of(arrays[0])
            texts = [cells.plain(cell) for cell in content]
            if any(not isinstance(text, str | type(None)) for text in texts) or len(shape) != 1:
                raise UnsupportedPickle("a StringArray with values that are not text")
            return [object_array(texts)]
        array = array_of(arrays[0])
        if array.dtype.kind != ("M" if kind == "DatetimeArray" else "m"):
            raise UnsupportedPickle(f"a {kind} with values that are not times")
        columns = list(_rows(array))
        if any(isinstance(part, Call) and class_of(part) == "DatetimeTZDtype" for part in state):
            return [object_array(_time_texts(column, "+00:00")) for column in columns]
        if kind == "DatetimeArray":
            return columns
        return [object_array(_time_texts(column)) for column in columns]
    if not isinstance(state, Pairs):
        raise UnsupportedPickle(f"a column of the unsupported type {kind}")
    if kind in ("IntegerArray", "FloatingArray", "BooleanArray"):
        data, mask = (array_of(state.get(name)) for name in ("_data", "_mask"))
        if data.ndim != 1 or data.shape != mask.shape or mask.dtype != bool:
            raise UnsupportedPickle(f"a {kind} whose data and mask differ in size")
        if not mask.any():
            return [data]
        pairs = zip(data.tolist(), mask.tolist(), strict=True)
        return [object_array([None if missing else value for value, missing in pairs])]
    if kind in ("ArrowStringArray", "ArrowExtensionArray"):
        return [arrow.column(state, cells)]
    raise UnsupportedPickle(f"a column of the unsupported type {kind}")


def _categories(state: tuple, codes: "np.ndarray", cells: Cells) -> Any:
    """The values of a categorical column."""
    kinds = [part for part in state if isinstance(part, Call) and class_of(part).endswith("Dtype")]
    dtype_state = kinds[0].state if kinds else None
    labels = _labels(
        dtype_state.get("categories") if isinstance(dtype_state, Pairs) else None, cells
    )
    if codes.ndim != 1 or codes.dtype.kind != "i":
        raise UnsupportedPickle("a Categorical without codes")
    if codes.size and not -1 <= codes.min() <= codes.max() < len(labels):
        raise UnsupportedPickle("a Categorical with a code that has no category")
    return object_array(
        [cells.plain(None if code < 0 else labels[code]) for code in codes.tolist()]
    )


def _labels(index: object, cells: Cells) -> list[Any]:
    """The labels of an axis as plain values. Raises: UnsupportedPickle."""
    match index:
        case Call(Name(_, "_new_Index"), (Name(_, "RangeIndex"), Pairs() as data)):
            numbers = _range(data)
            if len(numbers) > MOST_COLUMNS:
                raise UnsupportedPickle(f"it has {len(numbers)} columns, more than {MOST_COLUMNS}")
            return list(numbers)
        case Call(Name(_, "_new_Index"), (_, Pairs() as data)):
            values = data.get("data")
            if not is_array(values):
                return [label for column in _extension(values, cells) for label in column]
            if kind_of(values) == "O":
                return [cells.plain(label) for label in objects_of(values)[1]]
            array = array_of(values)
            return _time_texts(array) if array.dtype.kind in "mM" else array.tolist()
    raise UnsupportedPickle(_UNKNOWN_LABELS)


def _length(index: object, cells: Cells) -> int:
    """How many rows an axis has. Raises: UnsupportedPickle."""
    match index:
        case Call(Name(_, "_new_Index"), (Name(_, "RangeIndex"), Pairs() as data)):
            return len(_range(data))
        case Call(Name(_, "_new_Index"), (_, Pairs() as data)):
            values = data.get("data")
            if not is_array(values):
                return len(_extension(values, cells)[0])
            return len(objects_of(values)[1] if kind_of(values) == "O" else array_of(values))
    raise UnsupportedPickle(_UNKNOWN_LABELS)


def _range(data: Pairs) -> range:
    match [data.get(name) for name in ("start", "stop", "step")]:
        case [int(start), int(stop), int(step)]:
            if step and max(abs(start), abs(stop), abs(step)) < 1 << 40:
                return range(start, stop, step)
    raise UnsupportedPickle("rows or columns labelled by an invalid RangeIndex")


def _placement(value: object, columns: int) -> list[int]:
    """The numbers of a block's columns. Raises: UnsupportedPickle."""
    numbers: Sequence[int]
    match value:
        case Call(Name("builtins", "slice"), (int(start), int(stop), int(step))) if step:
            # two columns may be a slice whose stop is beyond the last one: 6 and 9 are 6:12:3
            numbers = range(start, stop, step)
            if len(numbers) > columns:
                raise UnsupportedPickle("a block of columns that have no names")
        case Call() if is_array(value):
            numbers = [int(number) for number in array_of(value).reshape(-1).tolist()]
        case _:
            raise UnsupportedPickle("a block without the numbers of its columns")
    if any(not 0 <= number < columns for number in numbers):
        raise UnsupportedPickle("a block of columns that have no names")
    return list(numbers)


def _rows(array: "np.ndarray") -> Iterator["np.ndarray"]:
    """The columns of a block: the rows of its array of shape [columns, rows]."""
    if array.ndim == 1:
        yield array
    elif array.ndim == 2:
        yield from array
    else:
        raise UnsupportedPickle(f"a block of {array.ndim} dimensions, not 1 or 2")


def _time_texts(column: "np.ndarray", zone: str = "") -> list[str | None]:
    import numpy as np

    return [None if np.isnat(time) else f"{time}{zone}" for time in column]


def _is_text(name: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in name)
