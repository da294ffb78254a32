"""Data sets and result files in: read a frame safely, check it, turn its rows into samples."""

import json
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from data.tasks import task_of
from ref_dsinfer.errors import ColumnsError, EmptyDataError, InputFileError

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("dataset", "question", "text_input", "ground_truth")
PICKLES = (".pkl", ".pickle")

# All that a pickled frame of text, numbers and lists needs, under the names pandas 1.5 to 3 and
# numpy 1 and 2 write. Anything else, whatever a pickle could call, is refused.
_ADMITTED: dict[str, frozenset[str]] = {
    "builtins": frozenset({"slice"}),
    "numpy": frozenset({"dtype", "ndarray"}),
    "numpy.core.multiarray": frozenset({"_reconstruct", "scalar"}),
    "numpy.core.numeric": frozenset({"_frombuffer"}),
    "pandas": frozenset({"DataFrame", "Index", "RangeIndex", "StringDtype"}),
    "pandas._libs.arrays": frozenset({"__pyx_unpickle_NDArrayBacked"}),
    "pandas._libs.internals": frozenset({"_unpickle_block"}),
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


@dataclass(frozen=True)
class Sample:
    """One row of the data set."""

    index: int  # row in the data set, from 0
    task: str  # canonical name, one of data.tasks.TASKS
    question: str
    prompt_text: str  # instructions and question, chat template not applied
    ground_truth: object  # as the data set holds it: text, a number, or a missing value


def read_frame(path: str | Path) -> "pd.DataFrame":
    """Read a frame from a pickle, a parquet file or JSON lines; rows are numbered from 0.

    A pickle is read without running what it names: only the types of a plain frame are admitted.

    Errors: InputFileError where there is no such file, or it is no frame; EmptyDataError.
    """
    import pandas as pd

    path = Path(path)
    kind = path.suffix.lower()
    if kind not in (*PICKLES, ".parquet", ".jsonl"):
        raise InputFileError(f"{path}: expected a .pkl, .pickle, .parquet or .jsonl file")
    try:
        with path.open("rb") as file:
            if kind == ".parquet":
                frame: object = pd.read_parquet(file)
            elif kind == ".jsonl":
                frame = pd.DataFrame(_json_rows(file))
            else:
                frame = _unpickler(file).load()
    except OSError as error:
        raise InputFileError(f"{path}: can't be read: {error.strerror or error}") from error
    except Exception as error:  # damaged input makes these libraries raise nearly anything
        raise InputFileError(f"{path}: not a {kind} data frame: {_first_line(error)}") from error
    if not isinstance(frame, pd.DataFrame):
        raise InputFileError(f"{path}: holds a {type(frame).__name__}, not a data frame")
    if frame.empty:
        raise EmptyDataError(f"{path}: the data frame has no rows")
    return frame.reset_index(drop=True)


def require_columns(frame: "pd.DataFrame", columns: Sequence[str]) -> None:
    """Errors: ColumnsError naming the columns that are missing and those that are there."""
    missing = [name for name in columns if name not in frame.columns]
    if missing:
        raise ColumnsError(
            f"missing columns: {', '.join(missing)} (present: {', '.join(map(str, frame.columns))})"
        )


def samples(frame: "pd.DataFrame") -> list[Sample]:
    """The rows of a data set as samples, in order.

    Errors: ColumnsError for missing columns, a prompt that is not text, an unknown data set name.
    """
    require_columns(frame, COLUMNS)
    rows = []
    for index, (name, question, text, truth) in enumerate(
        zip(*(frame[column] for column in COLUMNS), strict=True)
    ):
        if not isinstance(text, str):
            raise ColumnsError(f"row {index}: text_input is {type(text).__name__}, not text")
        rows.append(Sample(index, row_task(index, name), str(question), text, truth))
    return rows


def row_task(index: int, name: object) -> str:
    """The task of row `index`, whose data set is `name`. Errors: ColumnsError naming both."""
    try:
        return task_of(name)
    except ValueError as error:
        raise ColumnsError(f"row {index}: {error}") from error


def _json_rows(file: BinaryIO) -> list[dict[str, Any]]:
    # pandas' own reader turns "042" into 42 and dates into timestamps; answers must stay as written
    rows = []
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        row = json.loads(line)
        if not isinstance(row, dict):
            raise ValueError(f"line {number} is not an object")
        rows.append(row)
    return rows


def _unpickler(file: BinaryIO) -> pickle.Unpickler:
    class FrameUnpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            module = module.replace("numpy._core", "numpy.core")
            if name not in _ADMITTED.get(module, ()):
                raise pickle.UnpicklingError(f"it names {module}.{name}, which no frame needs")
            module, name = _MOVED.get((module, name), (module, name))
            if module.startswith("numpy.core."):
                module = module.replace("numpy.core", _numpy_core())
            return super().find_class(module, name)

    return FrameUnpickler(file)


def _numpy_core() -> str:
    import numpy as np

    return "numpy.core" if np.lib.NumpyVersion(np.__version__) < "2.0.0" else "numpy._core"


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
