"""A data frame made of what a pickle says (`data.pickles.structure`), block by block.

Categories, nullable numbers, dates and the like become plain columns: text, numbers, lists, None.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from data.pickles.structure import Call, Name, Pairs, Refused
from data.pickles.values import (
    Cells,
    array_of,
    bytes_of,
    class_of,
    is_array,
    kind_of,
    objects_of,
    of_objects,
)
from errors import ColumnsError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd


MOST_COLUMNS = 10_000
_UNKNOWN_LABELS = "labels of rows or columns in a form that is not known here: reset_index() first"


def is_frame(value: object) -> bool:
    """Whether what a pickle would return is a data frame."""
    return isinstance(value, Call) and class_of(value) == "DataFrame"


def shown(value: object) -> str:
    """What a pickle would return, in a few words."""
    if isinstance(value, Call):
        return f"a {class_of(value)}"
    return f"a {'dict' if isinstance(value, Pairs) else type(value).__name__}"


def build(value: object, size: int) -> "pd.DataFrame":
    """The frame of a pickle of `size` bytes; its rows are numbered from 0.

    Errors: ColumnsError naming column and row where a cell is none that is known here; Refused,
    or others of numpy's where the frame is damaged.
    """
    import pandas as pd

    state = value.state if isinstance(value, Call) else None
    manager = state.get("_mgr") if isinstance(state, Pairs) else None
    if not isinstance(manager, Call) or class_of(manager) != "BlockManager":
        raise Refused("the data frame in it has no blocks of columns")
    match manager.arguments:
        case (tuple() as blocks, list() as axes) if len(axes) == 2:
            pass
        case _:
            raise Refused("its blocks and axes are not those of a data frame")
    cells = Cells(size)
    names = [str(name) for name in _labels(axes[0], cells)]
    if len(names) > MOST_COLUMNS:
        raise Refused(f"it has {len(names)} columns")
    if not all(map(_is_text, names)):
        raise Refused("the name of a column is no text")
    rows = _length(axes[1], cells)
    columns: dict[int, Any] = {}
    for block in blocks:
        for number, column in _block(block, names, rows, cells):
            if number in columns:
                raise Refused(f"column {number} is there twice")
            columns[number] = column
    if sorted(columns) != list(range(len(names))):
        raise Refused(f"it names {len(names)} columns and holds {len(columns)}")
    # with the types that they have: pandas would look for a narrower one in columns of objects
    series = {n: pd.Series(column, dtype=column.dtype) for n, column in sorted(columns.items())}
    frame = pd.DataFrame(series, index=range(rows) if names else None)
    return frame.set_axis(names, axis=1)


def _block(
    block: object, names: Sequence[str], rows: int, cells: Cells
) -> Iterator[tuple[int, Any]]:
    """Number and values of each column in a block. Errors: ColumnsError; Refused."""
    match block:
        case Call(Name(_, "_unpickle_block" | "new_block"), (values, placement, *_)):
            pass
        case _:
            raise Refused("a block of its columns is none")
    numbers = _placement(placement, len(names))
    told = ", ".join(names[number] for number in numbers)
    try:
        if is_array(values):
            if kind_of(values) == "O":
                yield from _objects(values, numbers, names, rows, cells)
                return
            found = list(_rows(array_of(values)))
            cells.spend(sum(map(len, found)))
        else:
            found = _extension(values, cells)
    except Refused as error:
        raise ColumnsError(_advice(f"column {told}: {error}")) from error
    if len(found) != len(numbers) or any(len(column) != rows for column in found):
        raise Refused(f"column {told}: its size is not that of the frame")
    yield from zip(numbers, found, strict=True)


def _objects(
    values: Call, numbers: Sequence[int], names: Sequence[str], rows: int, cells: Cells
) -> Iterator[tuple[int, Any]]:
    """The columns of an array of objects, of one row a column."""
    shape, content, order = objects_of(values)
    if shape != (len(numbers), rows):
        raise Refused(f"column {', '.join(names[n] for n in numbers)}: its shape is {shape}")
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
            except Refused as error:
                raise ColumnsError(
                    _advice(f"column {names[number]}, row {row}: it holds {error}")
                ) from error
        yield number, of_objects(column)


def _advice(found: str) -> str:
    return f"{found}: make it text, numbers or lists"


def _extension(values: object, cells: Cells) -> list[Any]:
    """The columns of a block of pandas' own types."""
    if not isinstance(values, Call):
        raise Refused(f"a block of {type(values).__name__}")
    kind, state = class_of(values), values.state
    if kind in ("StringArray", "Categorical", "DatetimeArray", "TimedeltaArray"):
        if not isinstance(state, tuple):
            raise Refused(f"a {kind} without its values")
        arrays = [part for part in state if is_array(part)]
        if len(arrays) != 1:
            raise Refused(f"a {kind} without its values")
        if kind == "Categorical":
            return [_categories(state, array_of(arrays[0]), cells)]
        if kind == "StringArray":
            shape, content, _ = objects_of(arrays[0])
            texts = [cells.plain(cell) for cell in content]
            if any(not isinstance(text, str | type(None)) for text in texts) or len(shape) != 1:
                raise Refused("texts that are none")
            return [of_objects(texts)]
        array = array_of(arrays[0])
        if array.dtype.kind != ("M" if kind == "DatetimeArray" else "m"):
            raise Refused(f"a {kind} of no times")
        found = list(_rows(array))
        if any(isinstance(part, Call) and class_of(part) == "DatetimeTZDtype" for part in state):
            return [of_objects(_time_texts(column, "+00:00")) for column in found]
        return found if kind == "DatetimeArray" else [of_objects(_time_texts(c)) for c in found]
    if not isinstance(state, Pairs):
        raise Refused(f"a column of the type {kind}, which is not known here")
    if kind in ("IntegerArray", "FloatingArray", "BooleanArray"):
        data, mask = (array_of(state.get(name)) for name in ("_data", "_mask"))
        if data.ndim != 1 or data.shape != mask.shape or mask.dtype != bool:
            raise Refused(f"a {kind} of two sizes")
        if not mask.any():
            return [data]
        pairs = zip(data.tolist(), mask.tolist(), strict=True)
        return [of_objects([None if missing else value for value, missing in pairs])]
    if kind == "ArrowStringArray":
        return [of_objects(_arrow_texts(values, cells))]
    raise Refused(f"a column of the type {kind}, which is not known here")


def _categories(state: tuple, codes: "np.ndarray", cells: Cells) -> Any:
    """The values that categories stand for."""
    kinds = [part for part in state if isinstance(part, Call) and class_of(part).endswith("Dtype")]
    told = kinds[0].state if kinds else None
    labels = _labels(told.get("categories") if isinstance(told, Pairs) else None, cells)
    if codes.ndim != 1 or codes.dtype.kind != "i":
        raise Refused("categories without their numbers")
    if codes.size and not -1 <= codes.min() <= codes.max() < len(labels):
        raise Refused("a category that it does not name")
    return of_objects([cells.plain(None if code < 0 else labels[code]) for code in codes.tolist()])


def _arrow_texts(values: Call, cells: Cells) -> list[str | None]:
    state = values.state
    held = state.get("_pa_array") or state.get("_data") if isinstance(state, Pairs) else None
    match held:
        case Call(Name(_, "chunked_array"), ([*chunks], *_)):
            pass
        case Call(Name(_, "_restore_array"), _):
            chunks = [held]
        case _:
            raise Refused("texts without their values")
    texts: list[str | None] = []
    for chunk in chunks:
        texts += map(cells.plain, _arrow_chunk(chunk))
        if len(texts) > cells.size:  # each takes four bytes of the file, if they are not shared
            raise Refused("more texts than the file holds")
    return texts


def _arrow_chunk(chunk: object) -> Iterator[str | None]:
    """The texts of an Arrow array: offsets into UTF-8, and perhaps a bit for each that is there."""
    import numpy as np

    match chunk:
        case Call(
            Name(_, "_restore_array"), ((kind, int(length), _, int(offset), [*buffers], *_),)
        ):
            pass
        case _:
            raise Refused("texts in another form than Arrow's")
    match kind:
        case Call(Name(_, "type_for_alias"), ("string" | "large_string" as alias,)):
            width = 4 if alias == "string" else 8
        case _:
            raise Refused("an Arrow array of another type than text")
    if len(buffers) != 3 or length < 0 or offset < 0:
        raise Refused("texts without their values")
    present, places, text = (
        None if buffer is None else bytes_of(_only(buffer, "py_buffer")) for buffer in buffers
    )
    if not length:
        return
    if places is None or len(places) < (offset + length + 1) * width:
        raise Refused("texts without their places")
    ends = np.frombuffer(places, f"<i{width}", length + 1, offset * width).tolist()
    ordered = all(first <= last for first, last in pairwise(ends))
    if ends[0] < 0 or ends[-1] > len(text or b"") or not ordered:
        raise Refused("texts beyond their end")
    if present is not None and len(present) * 8 < offset + length:
        raise Refused("texts that may be missing or not")
    for row in range(length):
        bit = offset + row
        if present is not None and not present[bit >> 3] >> (bit & 7) & 1:
            yield None
        else:
            yield (text or b"")[ends[row] : ends[row + 1]].decode()


def _labels(index: object, cells: Cells) -> list[Any]:
    """The labels of an axis, plain. Errors: Refused."""
    match index:
        case Call(Name(_, "_new_Index"), (Name(_, "RangeIndex"), Pairs() as data)):
            numbers = _range(data)
            if len(numbers) > MOST_COLUMNS:
                raise Refused(f"it numbers {len(numbers)} columns")
            return list(numbers)
        case Call(Name(_, "_new_Index"), (_, Pairs() as data)):
            values = data.get("data")
            if not is_array(values):
                return [label for column in _extension(values, cells) for label in column]
            if kind_of(values) == "O":
                return [cells.plain(label) for label in objects_of(values)[1]]
            array = array_of(values)
            return _time_texts(array) if array.dtype.kind in "mM" else array.tolist()
    raise Refused(_UNKNOWN_LABELS)


def _length(index: object, cells: Cells) -> int:
    """How many rows an axis has. Errors: Refused."""
    match index:
        case Call(Name(_, "_new_Index"), (Name(_, "RangeIndex"), Pairs() as data)):
            return len(_range(data))
        case Call(Name(_, "_new_Index"), (_, Pairs() as data)):
            values = data.get("data")
            if not is_array(values):
                return len(_extension(values, cells)[0])
            return len(objects_of(values)[1] if kind_of(values) == "O" else array_of(values))
    raise Refused(_UNKNOWN_LABELS)


def _range(data: Pairs) -> range:
    match [data.get(name) for name in ("start", "stop", "step")]:
        case [int(start), int(stop), int(step)]:
            if step and max(abs(start), abs(stop), abs(step)) < 1 << 40:
                return range(start, stop, step)
    raise Refused("rows or columns that are numbered without end")


def _placement(value: object, columns: int) -> list[int]:
    """Which columns a block has. Errors: Refused."""
    match value:
        case Call(Name("builtins", "slice"), (int(start), int(stop), int(step))):
            if not 0 <= start <= stop <= columns or step < 1:
                raise Refused("a block of columns that it does not name")
            numbers = list(range(start, stop, step))
        case Call() if is_array(value):
            numbers = [int(number) for number in array_of(value).reshape(-1).tolist()]
        case _:
            raise Refused("a block without its columns")
    if any(not 0 <= number < columns for number in numbers):
        raise Refused("a block of columns that it does not name")
    return numbers


def _rows(array: "np.ndarray") -> Iterator["np.ndarray"]:
    """The columns of a block, whose array has one row a column."""
    if array.ndim == 1:
        yield array
    elif array.ndim == 2:
        yield from array
    else:
        raise Refused(f"columns in {array.ndim} dimensions")


def _time_texts(column: "np.ndarray", zone: str = "") -> list[str | None]:
    import numpy as np

    return [None if np.isnat(time) else f"{time}{zone}" for time in column]


def _is_text(name: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def _only(value: object, name: str) -> object:
    """The single argument of a call of `name`. Errors: Refused."""
    if isinstance(value, Call) and value.function.name == name and len(value.arguments) == 1:
        return value.arguments[0]
    raise Refused(f"what is no {name}")
