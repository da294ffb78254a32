"""Build columns from parsed pickles of Arrow arrays, which pandas' Arrow-backed columns hold.

An array is its type, its length, an offset, buffers and the arrays it is made of. Text, numbers,
booleans and lists of them are read. Every place in a buffer is checked.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from data.pickles.structure import Call, Name, Pairs, UnsupportedPickle, compact
from data.pickles.values import Cells, bytes_of, object_array

if TYPE_CHECKING:
    import numpy as np

# NumPy's names of Arrow's types of numbers.
NUMBERS = {
    **{f"{sign}int{bits}": f"<{sign or 'i'}{bits // 8}" for sign in ("", "u")
       for bits in (8, 16, 32, 64)},
    **{"halffloat": "<f2", "float": "<f4", "double": "<f8"},
}  # fmt: skip
TEXT = {"string": 4, "large_string": 8}  # bytes of an offset
LISTS = {"list_": 4, "large_list": 8}


def column(state: Pairs, cells: Cells) -> "np.ndarray":
    """The values of an array of pandas' with this state.

    Raises: UnsupportedPickle; UnicodeDecodeError.
    """
    array = state.get("_pa_array") or state.get("_data")
    match array:
        case Call(Name(_, "chunked_array"), ([*chunks], *_)):
            pass
        case Call(Name(_, "_restore_array"), _):
            chunks = [array]
        case _:
            raise UnsupportedPickle("an Arrow array without its values")
    values: list[Any] = []
    for chunk in chunks:
        match chunk:
            case Call(Name(_, "_restore_array"), (tuple() as parts,)):
                values += map(cells.plain, _values(parts))
            case _:
                raise UnsupportedPickle("an Arrow array of another form than pyarrow's")
        if len(values) > 8 * cells.size:  # a value takes a bit of the file, unless chunks repeat
            raise UnsupportedPickle("an Arrow array with more values than the file can hold")
    return object_array(values)


def _values(parts: tuple, depth: int = 0) -> list[Any]:
    """The values of an array, None for a missing one."""
    match parts:
        case (kind, int(length), _, int(offset), [*buffers], [*children], *_):
            pass
        case _:
            raise UnsupportedPickle("an Arrow array of another form than pyarrow's")
    if length < 0 or offset < 0 or depth > 2:
        raise UnsupportedPickle("an Arrow array of an impossible length")
    if not length:
        return []
    data = [None if buffer is None else bytes_of(_only(buffer, "py_buffer")) for buffer in buffers]
    values: list[Any]
    match kind:
        case Call(Name(_, "type_for_alias"), (str(alias),)) if alias in TEXT:
            values = list(_texts(data, length, offset, TEXT[alias]))
        case Call(Name(_, "type_for_alias"), (str(alias),)) if alias in NUMBERS:
            values = _numbers(data, length, offset, NUMBERS[alias])
        case Call(Name(_, "type_for_alias"), ("bool",)):
            values = [bit == 1 for bit in _bits(_buffer(data, 1, 2), length, offset)]
        case Call(Name(_, name), _) if name in LISTS:
            if len(children) != 1 or not isinstance(children[0], tuple):
                raise UnsupportedPickle("an Arrow array of lists without their values")
            content = _values(children[0], depth + 1)
            ends = _ends(_buffer(data, 1, 2), length, offset, LISTS[name], len(content))
            values = [_list(content[start:end]) for start, end in pairwise(ends)]
        case _:
            raise UnsupportedPickle("an Arrow array of an unsupported type")
    if data[0] is None:
        return values
    present = _bits(data[0], length, offset)
    return [value if is_there else None for value, is_there in zip(values, present, strict=True)]


def _list(values: list[Any]) -> Any:
    return compact(values) if set(map(type, values)) == {int} else values


def _texts(data: list[Any], length: int, offset: int, width: int) -> Iterator[str]:
    text = _buffer(data, 2, 3, b"")
    for start, end in pairwise(_ends(_buffer(data, 1, 3), length, offset, width, len(text))):
        yield text[start:end].decode()


def _numbers(data: list[Any], length: int, offset: int, kind: str) -> list[Any]:
    import numpy as np

    numbers, size = _buffer(data, 1, 2), np.dtype(kind).itemsize
    if len(numbers) < (offset + length) * size:
        raise UnsupportedPickle("an Arrow array without all its numbers")
    values: list[Any] = np.frombuffer(numbers, kind, length, offset * size).tolist()
    return values


def _ends(raw: bytes, length: int, offset: int, width: int, most: int) -> list[int]:
    """Where values start in a buffer of `most` items, and the end of the last one."""
    import numpy as np

    if len(raw) < (offset + length + 1) * width:
        raise UnsupportedPickle("an Arrow array without all its offsets")
    ends: list[int] = np.frombuffer(raw, f"<i{width}", length + 1, offset * width).tolist()
    ordered = all(first <= last for first, last in pairwise(ends))
    if ends[0] < 0 or ends[-1] > most or not ordered:
        raise UnsupportedPickle("an Arrow array with offsets outside its values")
    return ends


def _bits(raw: bytes | bytearray, length: int, offset: int) -> list[int]:
    if len(raw) * 8 < offset + length:
        raise UnsupportedPickle("an Arrow array with too short a bitmap")
    return [raw[bit >> 3] >> (bit & 7) & 1 for bit in range(offset, offset + length)]


def _buffer(data: list[Any], number: int, count: int, default: bytes | None = None) -> bytes:
    """A buffer of an array that has `count` of them."""
    buffer = data[number] if len(data) == count and data[number] is not None else default
    if buffer is None or len(data) != count:
        raise UnsupportedPickle("an Arrow array without its values")
    return buffer


def _only(value: object, name: str) -> object:
    """The only argument of a call of `name`. Raises: UnsupportedPickle."""
    if isinstance(value, Call) and value.function.name == name and len(value.arguments) == 1:
        return value.arguments[0]
    raise UnsupportedPickle(f"a value in place of a {name}")
