"""Pickled frames read without running what they name, and without a Python object a token id.

A pickle is a program: what it may call is named here. The lists of token ids in a full run's, 20
million numbers, would take a gigabyte; in memory they are arrays of int32, in the file lists.
"""

import mmap
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

MANY = 64  # ints that make an array of a list

# All that a pickled frame of text, numbers and lists needs, under the names pandas 1.5 to 3 and
# numpy 1 and 2 write. Anything else, whatever a pickle could call, is refused.
_ADMITTED: dict[str, frozenset[str]] = {
    "builtins": frozenset({"bytearray", "slice"}),
    "numpy": frozenset({"dtype", "ndarray"}),
    "numpy.core.multiarray": frozenset({"_reconstruct", "scalar"}),
    "numpy.core.numeric": frozenset({"_frombuffer"}),
    "pandas": frozenset({"DataFrame", "Index", "NA", "RangeIndex", "StringDtype"}),
    "pandas._libs.arrays": frozenset({"__pyx_unpickle_NDArrayBacked"}),
    "pandas._libs.internals": frozenset({"_unpickle_block"}),
    "pandas._libs.missing": frozenset({"NA"}),
    "pandas.arrays": frozenset({"ArrowStringArray", "StringArray"}),
    "pandas.core.arrays.string_": frozenset({"StringArray", "StringDtype"}),
    "pandas.core.arrays.string_arrow": frozenset({"ArrowStringArray"}),
    "pandas.core.frame": frozenset({"DataFrame"}),
    "pandas.core.indexes.base": frozenset({"Index", "_new_Index"}),
    "pandas.core.indexes.numeric": frozenset({"Int64Index"}),
    "pandas.core.indexes.range": frozenset({"RangeIndex"}),
    "pandas.core.internals.blocks": frozenset({"new_block"}),
    "pandas.core.internals.managers": frozenset({"BlockManager"}),
    "pyarrow.lib": frozenset({"_restore_array", "chunked_array", "py_buffer", "type_for_alias"}),
}
_MOVED = {
    ("pandas.core.indexes.numeric", "Int64Index"): ("pandas", "Index"),
    ("pandas.core.internals.blocks", "new_block"): ("pandas._libs.internals", "_unpickle_block"),
}

# A list of nothing but ints in the opcodes of protocols 1 and later, from what follows EMPTY_LIST:
# the list's number among the objects, batches of ints, perhaps a single one.
_NUMBER = re.compile(rb"\x94|q.|r.{4}|", re.DOTALL)
_INT = rb"(?:K.|M..|J.{4})"
_FRAME = rb"(?:\x95.{8})"  # only says how many bytes to read at once
_BATCH = re.compile(_FRAME + rb"?\(((?:" + _INT + rb"|" + _FRAME + rb")+)e", re.DOTALL)
_SINGLE = re.compile(_FRAME + rb"?(" + _INT + rb")a", re.DOTALL)
_MORE = re.compile(_FRAME + rb"?\(", re.DOTALL)
_INTS_OR_FRAME = re.compile(rb"((?:" + _INT + rb")+)|" + _FRAME, re.DOTALL)


def load(file: BinaryIO) -> object:
    """What a pickle holds, where it names nothing but what a plain frame needs.

    Long lists of ints alone come as arrays. Errors: OSError; nearly any where the file is damaged.
    """
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return _FrameUnpickler(data).load()


def dump(frame: "pd.DataFrame", path: Path) -> None:
    """Pickle a frame; its one-dimensional arrays of int32 are written as lists.

    Errors: OSError.
    """
    pickler = _FramePickler if _holds_lists(frame) else pickle.Pickler
    with path.open("wb") as file:
        pickler(file, pickle.HIGHEST_PROTOCOL).dump(frame)


def compact(ints: list[int]) -> "list[int] | np.ndarray":
    """Many ints as an array, of int32 where that holds them; few as they are."""
    import numpy as np

    if len(ints) < MANY:
        return ints
    array = np.array(ints)
    fits = array.dtype != object and array.min() >= -(1 << 31) and array.max() < 1 << 31
    return array.astype(np.int32) if fits else array


class _FrameUnpickler(pickle._Unpickler):  # the one in C can't be told to make arrays
    """The standard library's unpickler in Python, on a file that is mapped to memory."""

    memo: dict[int, object]
    stack: list[Any]  # since the last mark
    read: Callable[[int], bytes]

    def __init__(self, data: mmap.mmap) -> None:
        super().__init__(data)
        self._data = data

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy._core", "numpy.core")
        if name not in _ADMITTED.get(module, ()):
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no frame needs")
        module, name = _MOVED.get((module, name), (module, name))
        if module.startswith("numpy.core."):
            module = module.replace("numpy.core", _numpy_core())
        return super().find_class(module, name)

    def load_frame(self) -> None:
        self.read(8)  # the whole file is at hand

    def load_empty_list(self) -> None:
        found = None if self._fills_an_array() else self._ints()
        if found is None:
            self.stack.append([])
            return
        number, ints = found
        value = compact(pickle.loads(b"\x80\x04](" + ints + b"e."))
        self.stack.append(value)
        if number:
            put = len(self.memo) if len(number) == 1 else int.from_bytes(number[1:], "little")
            self.memo[put] = value

    def _ints(self) -> tuple[bytes, bytes] | None:
        """The number of the list that begins here, and its ints' opcodes; what is read is passed.

        None where it holds anything else.
        """
        number = _NUMBER.match(self._data, self._data.tell())
        assert number
        position, batches = number.end(), []
        while batch := _BATCH.match(self._data, position):
            batches.append(_INTS_OR_FRAME.sub(rb"\1", batch[1]))
            position = batch.end()
        if single := _SINGLE.match(self._data, position):
            batches.append(single[1])
            position = single.end()
        if not batches or _MORE.match(self._data, position):
            return None
        self._data.seek(position)
        return number[0], b"".join(batches)

    def load_build(self) -> None:
        if callable(self.stack[-2]):
            raise pickle.UnpicklingError("it changes what it names, which no frame needs")
        super().load_build()  # type: ignore[misc]  # not in the stubs

    def _fills_an_array(self) -> bool:
        """Whether a list here is the content of an array of objects, in its state's fifth place."""
        import numpy as np

        return len(self.stack) == 4 and isinstance(self.stack[2], np.dtype)

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = pickle._Unpickler.dispatch | {
        pickle.FRAME[0]: load_frame,
        pickle.EMPTY_LIST[0]: load_empty_list,
        pickle.BUILD[0]: load_build,
    }


class _FramePickler(pickle._Pickler):
    """The standard library's pickler in Python; the items of a list of ints are written in C."""

    memo: dict[int, object]
    write: Callable[[bytes], object]
    memoize: Callable[[object], None]

    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        ids = None if id(obj) in self.memo else _ids(obj)
        if ids is None:
            super().save(obj, save_persistent_id)  # type: ignore[misc]  # not in the stubs
            return
        self.write(pickle.EMPTY_LIST)
        self.memoize(obj)
        # the last protocol without frames: its header and its own list are 5 bytes
        self.write(pickle.dumps(ids, 3)[5:-1])


def _holds_lists(frame: "pd.DataFrame") -> bool:
    import numpy as np

    return any(
        isinstance(value, list | np.ndarray)
        for _, column in frame.items()
        if column.dtype == object
        for value in column
    )


def _ids(value: Any) -> list[int] | None:
    """The ints of a list or an array of nothing else; None for anything else."""
    import numpy as np

    if isinstance(value, np.ndarray):
        return value.tolist() if value.ndim == 1 and value.dtype == np.int32 else None
    return value if type(value) is list and set(map(type, value)) == {int} else None


def _numpy_core() -> str:
    import numpy as np

    return "numpy.core" if np.lib.NumpyVersion(np.__version__) < "2.0.0" else "numpy._core"
