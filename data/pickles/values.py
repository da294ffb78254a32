"""Build arrays and cells from a parsed pickle, after validation.

Nothing from the file reaches numpy unchecked: dtypes are made from a few known names, buffers have
the size that their shape requires, and cells are plain values.
"""

import datetime
import math
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeGuard

from data.pickles.structure import Call, Name, Pairs, UnsupportedPickle

if TYPE_CHECKING:
    import numpy as np

# The total size of all cells may be ROOM + ROOM_A_BYTE * size of the file. A cell that is referred
# to twice counts twice, as it takes twice the time to write or compare.
ROOM = 16 << 20  # characters and numbers
ROOM_A_BYTE = 8  # characters and numbers per byte of the file
_DEPTH = 50  # of nested lists
_INT_BITS = 1024
_KEY_BITS = 60  # longer integers could be chosen to collide as keys
_NUMBER = re.compile(r"([iu][1248]|f[248]|b1)\Z")
_TIME = re.compile(r"[mM]8\Z")
_TEXT = re.compile(r"U\d{1,8}\Z")
_UNITS = ("s", "ms", "us", "ns")
_RESOLUTIONS = dict(zip((7, 8, 9, 10), _UNITS, strict=True))  # numpy's numbers for them
_DECIMAL = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d{1,6})?\Z|NaN\Z|-?Infinity\Z")
_ENCODINGS = ("latin1", "latin-1")

Order = Literal["C", "F"]


class Cells:
    """Converts cells to plain values, and limits their total size for a file of `size` bytes."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._room = ROOM + ROOM_A_BYTE * size
        self._cache: dict[int, tuple[Any, int]] = {}  # by the identity of a list, tuple or call

    def plain(self, value: object) -> Any:
        """A cell as a plain value. Raises: UnsupportedPickle saying what it is instead."""
        cell, weight = self._plain(value, 0)
        self.spend(weight)
        return cell

    def spend(self, weight: int) -> None:
        """Raises: UnsupportedPickle if there is no room for `weight` more characters or numbers."""
        self._room -= weight
        if self._room < 0:
            raise UnsupportedPickle(
                "far more values than a file of its size should, by repeated references"
            )

    def _plain(self, value: object, depth: int) -> tuple[Any, int]:
        import numpy as np

        match value:
            case None | bool() | float():
                return value, 1
            case str():
                return value, len(value) + 1
            case int():
                if value.bit_length() > _INT_BITS:
                    raise UnsupportedPickle(f"an integer of {value.bit_length()} bits")
                return value, 1
            case bytes() | bytearray():
                return bytes(value), len(value)
            case np.ndarray():
                return value, value.size
            case Name(_, "NA"):
                return None, 1
            case Name():
                raise UnsupportedPickle(str(value))
        if id(value) not in self._cache:
            if depth == _DEPTH:
                raise UnsupportedPickle(f"lists nested more than {_DEPTH} deep")
            self._cache[id(value)] = self._container(value, depth + 1)
        return self._cache[id(value)]

    def _container(self, value: object, depth: int) -> tuple[Any, int]:
        match value:
            case Call():
                return self._called(value, depth)
            case Pairs():
                return self._dictionary(value, depth)
            case list() | tuple():
                items = [self._plain(item, depth) for item in value]
                kind: Callable = type(value)
                return kind(item for item, _ in items), sum(weight for _, weight in items) + 1
        raise UnsupportedPickle(f"a {type(value).__name__}")

    def _dictionary(self, pairs: Pairs, depth: int) -> tuple[dict[Any, Any], int]:
        dictionary, weight = {}, 1
        for key, item in pairs:
            if type(key) is not str and not (type(key) is int and key.bit_length() < _KEY_BITS):
                raise UnsupportedPickle("a dictionary whose keys are neither text nor small ints")
            dictionary[key], item_weight = self._plain(item, depth)
            weight += item_weight + len(str(key))
        return dictionary, weight

    def _called(self, call: Call, depth: int) -> tuple[Any, int]:
        """A cell that is an object: an array, number or date."""
        if not is_array(call):
            scalar = _scalar(call)
            return scalar, len(str(scalar))
        if kind_of(call) != "O":
            array = array_of(call)
            return array, array.size
        shape, content, order = objects_of(call)
        items = [self._plain(item, depth) for item in content]
        array = object_array([item for item, _ in items]).reshape(shape, order=order)
        return array, sum(weight for _, weight in items) + 1


def class_of(call: Call) -> str:
    """The name of the class of the object that a call returns."""
    name = call.function.name
    if name in ("_reconstructor", "__pyx_unpickle_NDArrayBacked", "_new_Index"):
        first = call.arguments[0] if call.arguments else None
        return first.name if isinstance(first, Name) else name
    return name


def is_array(value: object) -> TypeGuard[Call]:
    """Whether it is the call that makes a numpy array."""
    return isinstance(value, Call) and value.function.name in ("_frombuffer", "_reconstruct")


def kind_of(call: Call) -> str:
    """The kind of an array's dtype, as numpy's letter. Raises: UnsupportedPickle."""
    return _dtype(_array_parts(call)[1]).kind


def array_of(value: object) -> "np.ndarray":
    """An array of numbers, times or texts. Raises: UnsupportedPickle."""
    if not isinstance(value, Call):
        raise UnsupportedPickle("an array without its values")
    shape, dtype, order, raw = _array_parts(value)
    return _from_bytes(bytes_of(raw), dtype, shape, order)


def objects_of(call: Call) -> tuple[tuple[int, ...], list[Any], Order]:
    """Shape, cells (not converted yet) and memory order of an object array.

    Raises: UnsupportedPickle.
    """
    import numpy as np

    shape, dtype, order, content = _array_parts(call)
    if isinstance(content, np.ndarray):  # the parser has made an array of a list of ints
        content = content.tolist()
    if _dtype(dtype).kind != "O" or type(content) is not list:
        raise UnsupportedPickle("an object array whose cells are not in a list")
    if _count(shape, len(content)) != len(content):
        raise UnsupportedPickle(f"an array of {len(content)} objects with the shape {shape}")
    return shape, content, order


def object_array(values: Sequence[Any]) -> "np.ndarray":
    """A one-dimensional object array, even if all values are lists of one length."""
    import numpy as np

    array = np.empty(len(values), object)
    for row, value in enumerate(values):  # np.array would make lists of one length a dimension
        array[row] = value
    return array


def bytes_of(value: object) -> bytes | bytearray:
    """Bytes, in any of the forms that protocols write, not copied. Raises: UnsupportedPickle."""
    match value:
        case bytes() | bytearray():
            return value
        case Call(Name("builtins", "bytearray"), (raw,)):
            return bytes_of(raw)
        case Call(Name(_, "encode" | "bytearray"), (str(text), encoding)):
            if encoding in _ENCODINGS:
                return text.encode("latin-1")
    raise UnsupportedPickle("values that are not bytes")


def _array_parts(call: Call) -> tuple[tuple, object, Order, object]:
    """Shape, dtype, memory order and content of an array, unchecked."""
    match call:
        case Call(Name(_, "_frombuffer"), (content, dtype, tuple() as shape, "C" | "F" as order)):
            return shape, dtype, order, content
        case Call(
            Name(_, "_reconstruct"),
            (Name("numpy", "ndarray"), *_),
            (1, tuple() as shape, dtype, fortran, content),
        ):
            return shape, dtype, "F" if fortran else "C", content
    raise UnsupportedPickle("an array without its values")


def _from_bytes(
    raw: bytes | bytearray, dtype: object, shape: tuple, order: Order = "C"
) -> "np.ndarray":
    import numpy as np

    kind = _dtype(dtype)
    count = _count(shape, len(raw))
    if count * kind.itemsize != len(raw) or kind.kind == "O":
        raise UnsupportedPickle(f"an array of {count} values in {len(raw)} bytes")
    if kind.kind == "U":  # numpy does not check that they are code points
        codes = np.frombuffer(raw, kind.byteorder + "u4").reshape(count, kind.itemsize // 4)
        if codes.size and codes.max() > 0x10FFFF:
            raise UnsupportedPickle("text with a code above U+10FFFF")
        texts = object_array(["".join(map(chr, text)).rstrip("\0") for text in codes.tolist()])
        return texts.reshape(shape, order=order)
    return np.frombuffer(raw, kind).astype(kind.newbyteorder("=")).reshape(shape, order=order)


def _count(shape: tuple, most: int) -> int:
    """The number of values in a shape.

    Raises: UnsupportedPickle if it is not a shape, or has more than `most` values.
    """
    if len(shape) > 8 or any(type(size) is not int or not 0 <= size < 1 << 40 for size in shape):
        raise UnsupportedPickle("an array without a valid shape")
    count = math.prod(shape)
    if count > most or (not count and max(shape, default=1) > 1 << 20):
        raise UnsupportedPickle(f"an array of shape {shape}, more values than the file holds")
    return count


def _dtype(value: object) -> "np.dtype":
    """The dtype of a known name. Raises: UnsupportedPickle."""
    import numpy as np

    match value:
        case Call(Name("numpy", "dtype"), (str(name), *_), state):
            pass
        case _:
            raise UnsupportedPickle("an array without a dtype")
    order = state[1] if isinstance(state, tuple) and len(state) > 1 else "|"
    if order not in ("<", ">", "|", "="):
        raise UnsupportedPickle("an array of unknown byte order")
    if name in ("O8", "O"):
        return np.dtype(object)
    if _NUMBER.match(name) or _TEXT.match(name):
        return np.dtype(f"{order}{name}")
    if _TIME.match(name):
        match state:
            case (*_, (_, (unit, 1, 1, 1))):
                text = unit if isinstance(unit, str) else bytes_of(unit).decode("ascii", "replace")
                if text in _UNITS:
                    return np.dtype(f"{order}{name}[{text}]")
    raise UnsupportedPickle(f"an array of the unsupported dtype {name[:20]!a}")


def _scalar(call: Call) -> Any:
    """A number, or a date as text. Raises: UnsupportedPickle."""
    import numpy as np

    match call:
        case Call(Name(_, "scalar"), (dtype, raw)):
            return _from_bytes(bytes_of(raw), dtype, (1,))[0]
        case Call(Name(_, "_nat_unpickle" | "__nat_unpickle")):
            return None
        case Call(Name("decimal", "Decimal"), (str(text),)):
            if len(text) < 200 and _DECIMAL.match(text):
                return text
        case Call(Name("datetime", "date"), (raw,)):
            if len(raw := bytes_of(raw)) == 4:
                return datetime.date(raw[0] << 8 | raw[1], raw[2], raw[3]).isoformat()
        case Call(Name("datetime", "datetime"), (raw,)):
            if len(raw := bytes_of(raw)) == 10:
                rest = int.from_bytes(raw[7:], "big")
                day = datetime.datetime(raw[0] << 8 | raw[1], *raw[2:7], rest)  # type: ignore[call-arg]
                return day.isoformat()
        case Call(Name(_, "_unpickle_timestamp"), (int(value), None, None, *rest)):
            unit = _RESOLUTIONS.get(rest[0] if rest else 10)
            if unit and abs(value) < 1 << 63:
                return str(np.datetime64(value, unit))  # type: ignore[call-overload]
        case Call(Name(_, "encode" | "bytearray")):
            return bytes_of(call)
    raise UnsupportedPickle(f"a {class_of(call)} that can't be read")
