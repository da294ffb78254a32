"""What a column's values are, where a file's own types can't say it.

Parquet has one type a column: numbers beside text are stored as text, and dictionaries and nested
lists as JSON. JSON has no types of numbers. Files written here therefore name the kind of each such
column, in parquet's metadata or in the first row of JSON lines, and readers make the same values of
it. Other programs read the same text, numbers and lists without it.

A kind is
- the name of a NumPy type, for a column of that type;
- `object`: plain values as they are;
- `json`: texts of JSON; `tagged`: values of JSON. In both, bytes and dictionaries with keys other
  than text are dictionaries with a key of `TAGS`;
- `mixed:` and, for the rows in order, what texts stand for, each letter with the number of rows:
  `mixed:s2n1i5` is two texts, a missing value and five whole numbers.
"""

import base64
import json
import re
from collections.abc import Callable, Iterable
from itertools import groupby
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

KEY = "#columns"  # of parquet's metadata, and in the first row of JSON lines
OBJECT, JSON, TAGGED, MIXED = "object", "json", "tagged", "mixed:"
NUMPY = re.compile(r"bool|u?int(8|16|32|64)|float(16|32|64)|datetime64\[(s|ms|us|ns)\]")
TAGS = BYTES, PAIRS = "#bytes", "#pairs"
_RUN = re.compile(r"([sifbn])([1-9][0-9]{0,8})")
_LETTERS = {str: "s", int: "i", float: "f", bool: "b", type(None): "n"}
_READ: dict[str, Callable[[Any], Any]] = {
    "s": str,
    "i": int,
    "f": float,
    "b": lambda text: {"True": True, "False": False}[text],
    "n": lambda text: None,
}
SCALARS = frozenset(_LETTERS)
# Values in JSON of columns of NumPy's types, by the beginning of the type's name.
_VALUES: dict[str, set[type]] = {
    "bool": {bool},
    "int": {int},
    "uint": {int},
    "float": {int, float, type(None)},
    "datetime": {str, type(None)},
}


def mixed(cells: Iterable[Any]) -> str:
    """The kind of a column of text, numbers and missing values."""
    runs = groupby(_LETTERS[type(cell)] for cell in cells)
    return MIXED + "".join(f"{letter}{sum(1 for _ in run)}" for letter, run in runs)


def tagged(cell: Any) -> Any:
    """A value as JSON has it; what is neither plain nor bytes, such as a date, becomes text."""
    import numpy as np

    if isinstance(cell, np.ndarray):
        cell = (cell.astype(str) if cell.dtype.kind in "mM" else cell).tolist()
    if isinstance(cell, list | tuple):
        # token ids are checked at once, which takes a tenth of the time
        return list(cell) if set(map(type, cell)) <= {int} else [tagged(part) for part in cell]
    if isinstance(cell, bytes):
        return {BYTES: base64.b64encode(cell).decode()}
    if isinstance(cell, dict):
        if all(type(key) is str for key in cell) and not set(TAGS) & set(cell):
            return {key: tagged(part) for key, part in cell.items()}
        return {PAIRS: [[key, tagged(part)] for key, part in cell.items()]}
    return cell if type(cell) in SCALARS else str(cell)


def has_tags(value: Any) -> bool:
    """Whether a value of `tagged` has tags."""
    if isinstance(value, list):
        return not set(map(type, value)) <= SCALARS and any(map(has_tags, value))
    if isinstance(value, dict):
        return bool(set(TAGS) & set(value)) or any(map(has_tags, value.values()))
    return False


def untagged(value: Any) -> Any:
    """The value of which `tagged` has made this one. Raises: ValueError."""
    if isinstance(value, list):
        return value if set(map(type, value)) <= SCALARS else [untagged(part) for part in value]
    if not isinstance(value, dict):
        return value
    match value:
        case {"#bytes": str(text)} if len(value) == 1:
            return base64.b64decode(text, validate=True)
        case {"#pairs": [*pairs]} if len(value) == 1:
            return {key: untagged(part) for key, part in pairs}
    return {key: untagged(part) for key, part in value.items()}


def read_kinds(value: object, columns: Iterable[object]) -> dict[str, str]:
    """The kinds of some of the `columns`, from a file: JSON, or its value. Raises: ValueError."""
    kinds = json.loads(value) if isinstance(value, str | bytes) else value
    if not isinstance(kinds, dict) or not all(isinstance(kind, str) for kind in kinds.values()):
        raise ValueError(f"{KEY} is not an object of columns' kinds")
    if unknown := sorted(set(kinds) - set(columns)):
        raise ValueError(f"{KEY} names the column {unknown[0][:40]!a}, which is not in the file")
    return kinds


def restore(cells: list[Any], kind: str) -> "np.ndarray":
    """The values of a column of `kind`, from those that are in the file, None for a missing one.

    Raises: ValueError, or another exception of NumPy's, if they are not of this kind.
    """
    import numpy as np

    if NUMPY.fullmatch(kind):
        name = re.match("[a-z]+", kind)
        if name and set(map(type, cells)) <= _VALUES[name[0]]:
            return np.array(cells, kind)
        raise ValueError(f"{KEY} says {kind} of a column with other values")
    if kind == JSON:
        cells = [None if cell is None else untagged(json.loads(cell)) for cell in cells]
    elif kind == TAGGED:
        cells = [untagged(cell) for cell in cells]
    elif kind.startswith(MIXED):
        cells = _of_mixed(cells, kind)
    elif kind != OBJECT:
        raise ValueError(f"{KEY} has the unknown kind {kind[:40]!a}")
    return objects(cells)


def objects(cells: list[Any]) -> "np.ndarray":
    """Values as an array of objects, whatever they are."""
    import numpy as np

    array = np.empty(len(cells), object)
    for row, cell in enumerate(cells):  # NumPy would make lists of one length a dimension
        array[row] = cell
    return array


def _of_mixed(texts: list[Any], kind: str) -> list[Any]:
    pattern = kind.removeprefix(MIXED)
    runs = [(letter, int(count)) for letter, count in _RUN.findall(pattern)]
    if "".join(f"{letter}{count}" for letter, count in runs) != pattern:
        raise ValueError(f"{KEY} has the unknown kind {kind[:40]!a}")
    if sum(count for _, count in runs) != len(texts):
        raise ValueError(f"{KEY} has the kinds of another number of rows than {len(texts)}")
    rows = iter(texts)
    return [_READ[letter](next(rows)) for letter, count in runs for _ in range(count)]
