"""Arrays and cells made of what a pickle says, once it is found to be what it says.

Nothing of the file reaches numpy before it is checked: types are made from the few names known
here, buffers have the size that their shape asks for, and cells are plain values.
"""

import datetime
import math
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeGuard

from data.pickles.structure import Call, Name, Pairs, Refused

if TYPE_CHECKING:
    import numpy as np

# What all cells may hold together, where one that is referred to twice counts twice, as it does
# when it is written or compared.
ROOM = 16 << 20  # characters and numbers, and
ROOM_A_BYTE = 8  # more, a byte of the file
_DEPTH = 50  # of lists in lists
_INT_BITS = 1024
_KEY_BITS = 60  # whole numbers of more bits could be chosen to collide as keys
_NUMBER = re.compile(r"([iu][1248]|f[248]|b1)\Z")
_TIME = re.compile(r"[mM]8\Z")
_TEXT = re.compile(r"U\d{1,8}\Z")
_UNITS = ("s", "ms", "us", "ns")
_RESOLUTIONS = dict(zip((7, 8, 9, 10), _UNITS, strict=True))  # numpy's numbers for them
_DECIMAL = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d{1,6})?\Z|NaN\Z|-?Infinity\Z")
_ENCODINGS = ("latin1", "latin-1")

Order = Literal["C", "F"]


class Cells:
    """Cells made plain, and how much they hold together, in a file of `size` bytes."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._left = ROOM + ROOM_A_BYTE * size
        self._done: dict[int, tuple[Any, int]] = {}  # by the identity of a list, tuple or call

    def plain(self, value: object) -> Any:
        """Errors: Refused, saying what it is, for what is no plain value, or too much of it."""
        made, weight = self._plain(value, 0)
        self.spend(weight)
        return made

    def spend(self, weight: int) -> None:
        """Errors: Refused where no room for `weight` more characters or numbers is left."""
        self._left -= weight
        if self._left < 0:
            raise Refused("far more than the file's size allows for, in references to itself")

    def _plain(self, value: object, depth: int) -> tuple[Any, int]:
        import numpy as np

        match value:
            case None | bool() | float():
                return value, 1
            case str():
                return value, len(value) + 1
            case int():
                if value.bit_length() > _INT_BITS:
                    raise Refused(f"an integer of {value.bit_length()} bits")
                return value, 1
            case bytes() | bytearray():
                return bytes(value), len(value)
            case np.ndarray():
                return value, value.size
            case Name(_, "NA"):
                return None, 1
            case Name():
                raise Refused(str(value))
        if id(value) not in self._done:
            if depth == _DEPTH:
                raise Refused(f"lists in lists, more than {_DEPTH} deep")
            self._done[id(value)] = self._container(value, depth + 1)
        return self._done[id(value)]

    def _container(self, value: object, depth: int) -> tuple[Any, int]:
        match value:
            case Call():
                return self._called(value, depth)
            case Pairs():
                return self._dictionary(value, depth)
            case list() | tuple():
                made = [self._plain(item, depth) for item in value]
                kind: Callable = type(value)
                return kind(item for item, _ in made), sum(weight for _, weight in made) + 1
        raise Refused(f"a {type(value).__name__}")

    def _dictionary(self, pairs: Pairs, depth: int) -> tuple[dict[Any, Any], int]:
        made, weight = {}, 1
        for key, item in pairs:
            if type(key) is not str and not (type(key) is int and key.bit_length() < _KEY_BITS):
                raise Refused("a dictionary with keys that are neither text nor small numbers")
            made[key], heavy = self._plain(item, depth)
            weight += heavy + len(str(key))
        return made, weight

    def _called(self, call: Call, depth: int) -> tuple[Any, int]:
        """A cell that is an object: an array, number or date."""
        if not is_array(call):
            made = _scalar(call)
            return made, len(str(made))
        if kind_of(call) != "O":
            array = array_of(call)
            return array, array.size
        shape, content, order = objects_of(call)
        items = [self._plain(item, depth) for item in content]
        array = of_objects([item for item, _ in items]).reshape(shape, order=order)
        return array, sum(weight for _, weight in items) + 1


def class_of(call: Call) -> str:
    """What a call makes: the name of its class."""
    name = call.function.name
    if name in ("_reconstructor", "__pyx_unpickle_NDArrayBacked", "_new_Index"):
        first = call.arguments[0] if call.arguments else None
        return first.name if isinstance(first, Name) else name
    return name


def is_array(value: object) -> TypeGuard[Call]:
    """Whether it would be a numpy array."""
    return isinstance(value, Call) and value.function.name in ("_frombuffer", "_reconstruct")


def kind_of(call: Call) -> str:
    """The kind of an array's type, by numpy's letter. Errors: Refused."""
    return _dtype(_array_parts(call)[1]).kind


def array_of(value: object) -> "np.ndarray":
    """An array of numbers, times or texts. Errors: Refused."""
    if not isinstance(value, Call):
        raise Refused("an array without its values")
    shape, dtype, order, raw = _array_parts(value)
    return _from_bytes(bytes_of(raw), dtype, shape, order)


def objects_of(call: Call) -> tuple[tuple[int, ...], list[Any], Order]:
    """Shape, content and order of an array of objects, whose cells are as the file has them.

    Errors: Refused.
    """
    import numpy as np

    shape, dtype, order, content = _array_parts(call)
    if isinstance(content, np.ndarray):  # as a list of whole numbers has come
        content = content.tolist()
    if _dtype(dtype).kind != "O" or type(content) is not list:
        raise Refused("an array of objects over memory of the file's choice")
    if _count(shape, len(content)) != len(content):
        raise Refused(f"an array of {len(content)} objects in the shape {shape}")
    return shape, content, order


def of_objects(values: Sequence[Any]) -> "np.ndarray":
    """An array of one dimension, whatever the values are."""
    import numpy as np

    array = np.empty(len(values), object)
    for row, value in enumerate(values):  # numpy would make lists of one length a dimension
        array[row] = value
    return array


def bytes_of(value: object) -> bytes | bytearray:
    """Bytes, in whichever way a protocol writes them, not copied. Errors: Refused."""
    match value:
        case bytes() | bytearray():
            return value
        case Call(Name("builtins", "bytearray"), (raw,)):
            return bytes_of(raw)
        case Call(Name(_, "encode" | "bytearray"), (str(text), encoding)):
            if encoding in _ENCODINGS:
                return text.encode("latin-1")
    raise Refused("values that are no bytes")


def _array_parts(call: Call) -> tuple[tuple, object, Order, object]:
    """Shape, type, order and content of an array, as the file has them."""
    match call:
        case Call(Name(_, "_frombuffer"), (content, dtype, tuple() as shape, "C" | "F" as order)):
            return shape, dtype, order, content
        case Call(
            Name(_, "_reconstruct"),
            (Name("numpy", "ndarray"), *_),
            (1, tuple() as shape, dtype, fortran, content),
        ):
            return shape, dtype, "F" if fortran else "C", content
    raise Refused("an array without its values")


def _from_bytes(
    raw: bytes | bytearray, dtype: object, shape: tuple, order: Order = "C"
) -> "np.ndarray":
    import numpy as np

    kind = _dtype(dtype)
    count = _count(shape, len(raw))
    if count * kind.itemsize != len(raw) or kind.kind == "O":
        raise Refused(f"an array of {count} values in {len(raw)} bytes")
    if kind.kind == "U":  # numpy would make text of what is no character
        codes = np.frombuffer(raw, kind.byteorder + "u4").reshape(count, kind.itemsize // 4)
        if codes.size and codes.max() > 0x10FFFF:
            raise Refused("text that is none")
        texts = of_objects(["".join(map(chr, text)).rstrip("\0") for text in codes.tolist()])
        return texts.reshape(shape, order=order)
    return np.frombuffer(raw, kind).astype(kind.newbyteorder("=")).reshape(shape, order=order)


def _count(shape: tuple, most: int) -> int:
    """How many values a shape has. Errors: Refused where it is none, or has more than `most`."""
    if len(shape) > 8 or any(type(size) is not int or not 0 <= size < 1 << 40 for size in shape):
        raise Refused("an array without a shape")
    count = math.prod(shape)
    if count > most or (not count and max(shape, default=1) > 1 << 20):
        raise Refused(f"an array of the shape {shape}, which the file does not hold")
    return count


def _dtype(value: object) -> "np.dtype":
    """A type that is made here, from its name. Errors: Refused."""
    import numpy as np

    match value:
        case Call(Name("numpy", "dtype"), (str(name), *_), state):
            pass
        case _:
            raise Refused("an array without a type")
    order = state[1] if isinstance(state, tuple) and len(state) > 1 else "|"
    if order not in ("<", ">", "|", "="):
        raise Refused("an array of another byte order")
    if name in ("O8", "O"):
        return np.dtype(object)
    if _NUMBER.match(name) or _TEXT.match(name):
        return np.dtype(f"{order}{name}")
    if _TIME.match(name):
        match state:
            case (*_, (_, (unit, 1, 1, 1))):
                told = unit if isinstance(unit, str) else bytes_of(unit).decode("ascii", "replace")
                if told in _UNITS:
                    return np.dtype(f"{order}{name}[{told}]")
    raise Refused(f"an array of the type {name[:20]!a}")


def _scalar(call: Call) -> Any:
    """A number, or a date as text. Errors: Refused."""
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
    raise Refused(f"a {class_of(call)} that can't be read")
