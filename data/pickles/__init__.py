"""Read and write pickled data frames. A pickle is parsed and validated, never executed.

The token ids of a full run, 20 million of them, would take a gigabyte as Python lists: they are
lists in the file and int32 arrays in memory.
"""

import mmap
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from data.pickles import frame, structure
from data.pickles.structure import MANY, compact

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["MANY", "compact", "dump", "load", "parse"]


def load(file: BinaryIO) -> "pd.DataFrame":
    """The data frame in a pickle; its rows are numbered from 0.

    Long lists that hold only ints become arrays.

    Raises: OSError; ColumnsError for a column of unsupported values; almost any other exception
    if the file is damaged or not a data frame.
    """
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        value = structure.parse(data)
        if not frame.is_frame(value):
            raise structure.UnsupportedPickle(f"it holds {frame.describe(value)}")
        return frame.build(value, len(data))


def parse(data: bytes) -> object:
    """The structure of the object in a pickle, such as a text or a list of texts.

    Raises: almost any exception if it is damaged or holds what no data frame holds.
    """
    with mmap.mmap(-1, len(data)) as memory:
        memory.write(data)
        memory.seek(0)
        return structure.parse(memory)


def dump(frame: "pd.DataFrame", path: Path) -> None:
    """Pickle a frame; one-dimensional arrays of int32 in it are written as lists.

    Raises: OSError.
    """
    pickler = _FramePickler if _holds_lists(frame) else pickle.Pickler
    with path.open("wb") as file:
        pickler(file, pickle.HIGHEST_PROTOCOL).dump(frame)


class _FramePickler(pickle._Pickler):
    """The standard library's pickler in Python, with lists of ints written by the one in C."""

    memo: dict[int, object]
    write: Callable[[bytes], object]
    memoize: Callable[[object], None]
    save_bytes: Callable[[memoryview], None]
    save_bytearray: Callable[[memoryview], None]

    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        if isinstance(obj, pickle.PickleBuffer):
            # the memory of a column, of which the standard library's would keep a copy
            memory = obj.raw()
            (self.save_bytes if memory.readonly else self.save_bytearray)(memory)
            return
        ids = None if id(obj) in self.memo else _ids(obj)
        if ids is None:
            super().save(obj, save_persistent_id)  # type: ignore[misc]  # not in the stubs
            return
        self.write(pickle.EMPTY_LIST)
        self.memoize(obj)
        # protocol 3 is the last without frames; the first 5 bytes are its header and EMPTY_LIST
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
    """The ints of a list or array that holds only ints; None for anything else."""
    import numpy as np

    if isinstance(value, np.ndarray):
        return value.tolist() if value.ndim == 1 and value.dtype == np.int32 else None
    return value if type(value) is list and set(map(type, value)) == {int} else None
