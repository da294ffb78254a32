"""Pickled frames in and out. What a file says is checked, and never obeyed.

The lists of token ids in a full run's, 20 million numbers, would take a gigabyte; in memory they
are arrays of int32, in the file lists.
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

__all__ = ["MANY", "compact", "dump", "load"]


def load(file: BinaryIO) -> "pd.DataFrame":
    """The data frame in a pickle; its rows are numbered from 0.

    Long lists of ints alone come as arrays. Errors: OSError; ColumnsError for a column that holds
    what is not known here; nearly any other where the file is damaged or no frame.
    """
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        told = structure.parse(data)
        if not frame.is_frame(told):
            raise structure.Refused(f"it holds {frame.shown(told)}")
        return frame.build(told, len(data))


def dump(frame: "pd.DataFrame", path: Path) -> None:
    """Pickle a frame; its one-dimensional arrays of int32 are written as lists.

    Errors: OSError.
    """
    pickler = _FramePickler if _holds_lists(frame) else pickle.Pickler
    with path.open("wb") as file:
        pickler(file, pickle.HIGHEST_PROTOCOL).dump(frame)


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
