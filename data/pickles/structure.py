"""A safe pickle parser: it returns the structure of a pickle without executing it.

A pickle is a program: it imports functions, calls them, and sets the state of the objects they
return, down to the memory of arrays. Nothing is imported, called or set here. Text, numbers, lists
and tuples are returned as they are; a dictionary as `Pairs`, since its keys may have been chosen to
collide; a call as a `Call` with its arguments and state. `data.pickles.frame` builds a frame of it.

Memory and time are bounded by the file's size: see `MEMORY`.
"""

import mmap
import pickle
import pickletools
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

MANY = 64  # a list of this many ints or more becomes an array
# The memory that a file's objects may take, MEMORY + MEMORY_A_BYTE * size: most bytes of a file are
# text or numbers, which take a few bytes each in memory, but some one-byte opcodes take a hundred.
MEMORY = 64 << 20  # bytes
MEMORY_A_BYTE = 16  # bytes per byte of the file
_OBJECT = 100  # bytes of a small object and the reference to it

# Every name in a pickled frame of text, numbers, lists, dates and categories, as pandas 1.5 to 3
# and numpy 1 and 2 write it, by package. As nothing is imported, the module does not matter.
_NAMES: dict[str, frozenset[str]] = {
    "_codecs": frozenset({"encode"}),
    "builtins": frozenset({"bytearray", "object", "slice"}),
    "copyreg": frozenset({"_reconstructor"}),
    "datetime": frozenset({"date", "datetime", "timedelta", "timezone"}),
    "decimal": frozenset({"Decimal"}),
    "numpy": frozenset({"_frombuffer", "_reconstruct", "dtype", "ndarray", "scalar"}),
    "pandas": frozenset(
        {
            *("BlockManager", "DataFrame", "_unpickle_block", "new_block"),
            *("Float64Index", "Index", "Int64Index", "RangeIndex", "UInt64Index", "_new_Index"),
            *(
                "ArrowDtype",
                "ArrowExtensionArray",
                "ArrowStringArray",
                "BooleanArray",
                "Categorical",
                "DatetimeArray",
                "FloatingArray",
            ),
            *("IntegerArray", "StringArray", "TimedeltaArray", "__pyx_unpickle_NDArrayBacked"),
            *("BooleanDtype", "CategoricalDtype", "DatetimeTZDtype", "StringDtype"),
            *(
                f"{kind}{bits}Dtype"
                for kind in ("Int", "UInt", "Float")
                for bits in (8, 16, 32, 64)
            ),
            *("NA", "__nat_unpickle", "_nat_unpickle", "_unpickle_timestamp"),
        }
    ),
    "pyarrow": frozenset(
        {
            *("_restore_array", "chunked_array", "field", "large_list", "list_", "py_buffer"),
            "type_for_alias",
        }
    ),
    "pytz": frozenset({"_UTC", "_p"}),
    "zoneinfo": frozenset({"ZoneInfo._unpickle"}),
}
# Types of arguments that an opcode pushes on the stack unchanged, by pickletools' names.
_PLAIN = {"int", "int_or_bool", "float", "bytes", "bytes_or_str", "str", "bytearray"}

# The opcodes of a list that holds only ints, in protocol 1 and later, after EMPTY_LIST: the list's
# memo number, batches of ints, perhaps a single one. Between them may be a FRAME, which is a hint
# how many bytes to read at once.
_NUMBER = re.compile(rb"\x94|q.|r.{4}|", re.DOTALL)
_INT = rb"(?:K.|M..|J.{4})"
_FRAME = rb"(?:\x95.{8})?"
_BATCH = re.compile(_FRAME + rb"\(", re.DOTALL)
_INTS = re.compile(_FRAME + rb"(" + _INT + rb"++)", re.DOTALL)
_END = re.compile(_FRAME + rb"e", re.DOTALL)
_SINGLE = re.compile(_FRAME + rb"(" + _INT + rb")a", re.DOTALL)


class UnsupportedPickle(ValueError):
    """A pickle, or a part of it, can't be part of a data frame. The message says what it is."""


@dataclass(frozen=True, slots=True)
class Name:
    """A function or class that a pickle refers to."""

    package: str
    name: str

    def __str__(self) -> str:
        return f"{self.package}'s {self.name}"


@dataclass(slots=True, eq=False)
class Call:
    """The object that calling a function or class would return."""

    function: Name
    arguments: tuple
    state: object = None  # of the object, as BUILD would set it


class Pairs(list):
    """Keys and values of a dictionary, in order; keys may repeat."""

    __slots__ = ()

    def get(self, key: str) -> object:
        """The last value of a key; None if there is none."""
        return next((value for name, value in reversed(self) if name == key), None)


def parse(data: mmap.mmap) -> object:
    """The structure of the object in a pickle. Long lists that hold only ints become arrays.

    Raises: UnsupportedPickle; ValueError, IndexError and others of the standard library if the
    file is damaged.
    """
    return _Parser(data).run()


def compact(ints: list[int]) -> "list[int] | np.ndarray":
    """A list of `MANY` or more ints as an array, of int32 if they fit; a shorter list as it is."""
    import numpy as np

    if len(ints) < MANY:
        return ints
    values = np.empty(len(ints), np.intc)
    try:
        struct.pack_into(f"{len(ints)}i", values.data, 0, *ints)  # half the time that NumPy takes
    except struct.error:  # an int of more bits
        return np.array(ints)
    return values


class _Parser:
    """The pickle machine: a stack, marks and a memo."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._memory_left = MEMORY + MEMORY_A_BYTE * len(data)  # bytes
        self._stack: list[Any] = []  # above the last mark
        self._below: list[list[Any]] = []  # the stack below each mark
        self._memo: dict[int, object] = {}

    def run(self) -> object:
        data, operations = self._data, _OPERATIONS
        while True:
            code = data.read(1)
            if code == pickle.STOP:
                return self._stack.pop()
            if code not in operations:
                raise UnsupportedPickle(_unknown(code))
            read, operation = operations[code]
            argument = () if read is None else (read(data),)
            operation(self, *argument)

    def _spend(self) -> None:
        self._memory_left -= _OBJECT
        if self._memory_left < 0:
            raise UnsupportedPickle("it holds far more objects than a file of its size should")

    def _push(self, value: object) -> None:
        self._spend()
        self._stack.append(value)

    def value(self, value: object) -> None:
        self._stack.append(value)

    def mark(self) -> None:
        self._spend()
        self._below.append(self._stack)
        self._stack = []

    def _pop_items(self) -> list[Any]:
        """Pop the last mark and all items above it."""
        items, self._stack = self._stack, self._below.pop()
        return items

    def pop(self) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._pop_items()

    def pop_mark(self) -> None:
        self._pop_items()

    def duplicate(self) -> None:
        self._push(self._stack[-1])

    def name(self, module_and_name: str) -> None:
        module, _, name = module_and_name.partition(" ")
        self._push(_name(module, name))

    def stack_name(self) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if type(name) is not str or type(module) is not str:
            raise UnsupportedPickle("it refers to a function by a name that is not text")
        self._push(_name(module, name))

    def call(self) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        if type(function) is not Name or type(arguments) is not tuple:
            raise UnsupportedPickle("it calls something that is not a function with arguments")
        self._push(Call(function, arguments))

    def build(self) -> None:
        state, value = self._stack.pop(), self._stack[-1]
        if type(value) is Name:
            raise UnsupportedPickle("it changes a function or class, which no data frame needs")
        if type(value) is not Call or value.state is not None:
            raise UnsupportedPickle("it sets the state of an object without one, or sets it twice")
        value.state = state

    def remember(self, number: int | None = None) -> None:
        self._spend()
        if number is None:
            number = len(self._memo)
        if not 0 <= number <= len(self._data):  # larger keys could be chosen to collide
            raise UnsupportedPickle(f"it gives an object the number {number}")
        self._memo[number] = self._stack[-1]

    def recall(self, number: int) -> None:
        if number not in self._memo:
            raise UnsupportedPickle(f"it refers to object {number}, which is not in it")
        self._stack.append(self._memo[number])

    def empty_list(self) -> None:
        self._spend()
        int_list = self._ints()
        if int_list is None:
            self._stack.append([])
            return
        number, ints = int_list
        self._stack.append(compact(pickle.loads(b"".join([b"\x80\x04](", *ints, b"e."]))))
        if number:
            self.remember(None if len(number) == 1 else int.from_bytes(number[1:], "little"))

    def _ints(self) -> tuple[bytes, list[bytes]] | None:
        """Consume a list of ints: the opcodes of its memo number and of its ints.

        None, with nothing consumed, if the list that starts here holds anything else.
        """
        number = _NUMBER.match(self._data, self._data.tell())
        assert number
        position, parts = number.end(), []
        while batch := _BATCH.match(self._data, position):
            position = batch.end()
            while ints := _INTS.match(self._data, position):
                parts.append(ints[1])
                position = ints.end()
            end = _END.match(self._data, position)
            if not end:
                return None
            position = end.end()
        if single := _SINGLE.match(self._data, position):
            parts.append(single[1])
            position = single.end()
        if not parts or _BATCH.match(self._data, position):
            return None
        self._data.seek(position)
        return number[0], parts

    def tuple_of(self, count: int) -> None:
        items = tuple(self._stack[-count:])
        if len(items) < count:
            raise UnsupportedPickle("it pops more from its stack than there is")
        del self._stack[-count:]
        self._push(items)

    def marked_tuple(self) -> None:
        self._push(tuple(self._pop_items()))

    def marked_list(self) -> None:
        self._push(self._pop_items())

    def marked_dict(self) -> None:
        items = self._pop_items()
        self._push(Pairs())
        self._set(items)

    def append(self) -> None:
        item = self._stack.pop()
        self._list().append(item)

    def extend(self) -> None:
        items = self._pop_items()
        self._list().extend(items)

    def set_one(self) -> None:
        pair = self._stack[-2:]
        del self._stack[-2:]
        self._set(pair)

    def set_many(self) -> None:
        self._set(self._pop_items())

    def _set(self, items: list[Any]) -> None:
        pairs = self._stack[-1]
        if type(pairs) is not Pairs or len(items) % 2:
            raise UnsupportedPickle("it sets keys outside a dictionary, or a key without a value")
        pairs.extend(zip(items[::2], items[1::2], strict=True))
        self._memory_left -= _OBJECT * (len(items) // 2)
        self._spend()

    def _list(self) -> list[Any]:
        value = self._stack[-1]
        if type(value) is not list:
            raise UnsupportedPickle("it appends to something that is not a list")
        return value


def _name(module: str, name: str) -> Name:
    package = module.partition(".")[0].replace("__builtin__", "builtins")
    if name not in _NAMES.get(package, ()):
        raise UnsupportedPickle(
            f"it refers to {_short(module)}.{_short(name)}, which no data frame needs"
        )
    return Name(package, name)


def _short(text: str) -> str:
    return ascii(text[:80])[1:-1]


def _unknown(code: bytes) -> str:
    if not code:
        return "it ends too early"
    known = {opcode.code: opcode.name for opcode in pickletools.opcodes}
    name = known.get(code.decode("latin-1"))
    return f"it uses {name}, which no data frame needs" if name else "it is not a pickle"


# Of an opcode: how its argument is read from the file (None if it has none), and what it does.
_Operation = tuple[Callable[[Any], Any] | None, Callable[..., None]]


def _operations() -> dict[bytes, _Operation]:
    parser = _Parser
    actions: dict[str, Callable[..., None]] = {
        "PROTO": lambda parser, version: None,
        "FRAME": lambda parser, size: None,
        "NONE": lambda parser: parser._stack.append(None),
        "NEWTRUE": lambda parser: parser._stack.append(True),
        "NEWFALSE": lambda parser: parser._stack.append(False),
        "MARK": parser.mark,
        "POP": parser.pop,
        "POP_MARK": parser.pop_mark,
        "DUP": parser.duplicate,
        "EMPTY_TUPLE": lambda parser: parser._stack.append(()),
        "TUPLE1": lambda parser: parser.tuple_of(1),
        "TUPLE2": lambda parser: parser.tuple_of(2),
        "TUPLE3": lambda parser: parser.tuple_of(3),
        "TUPLE": parser.marked_tuple,
        "EMPTY_LIST": parser.empty_list,
        "LIST": parser.marked_list,
        "APPEND": parser.append,
        "APPENDS": parser.extend,
        "EMPTY_DICT": lambda parser: parser._push(Pairs()),
        "DICT": parser.marked_dict,
        "SETITEM": parser.set_one,
        "SETITEMS": parser.set_many,
        "GLOBAL": parser.name,
        "STACK_GLOBAL": parser.stack_name,
        "REDUCE": parser.call,
        "NEWOBJ": parser.call,
        "BUILD": parser.build,
        "PUT": parser.remember,
        "BINPUT": parser.remember,
        "LONG_BINPUT": parser.remember,
        "MEMOIZE": parser.remember,
        "GET": parser.recall,
        "BINGET": parser.recall,
        "LONG_BINGET": parser.recall,
    }
    table: dict[bytes, _Operation] = {}
    for opcode in pickletools.opcodes:
        pushes = opcode.arg and not opcode.stack_before and opcode.stack_after[:1]
        if opcode.name in actions or (pushes and pushes[0].name in _PLAIN):
            read = opcode.arg.reader if opcode.arg else None
            table[opcode.code.encode("latin-1")] = read, actions.get(opcode.name, parser.value)
    return table


_OPERATIONS = _operations()
