"""LoadGen's accuracy log: one row an answer, its token ids as the hexadecimal bytes of int32s.

The public grader drops the rows it can't use and averages over the rest. Here each of them is an
error: an accuracy says something about all the samples or nothing.
"""

import hashlib
import json
import sys
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ref_dsinfer.errors import GradingError, InputFileError

_ID_BYTES = 4
_LARGEST_ID = 1 << 24  # far above any vocabulary; floats read as int32 lie far above it


def read(path: str | Path, rows: int | None = None) -> list[tuple[int, tuple[int, ...]]]:
    """Sample index and token ids of every answer in the log, in order of the index.

    `rows`: how many samples the data set has, where it is known. An answer that was empty is in the
    log as the one stop id that LoadGen was given for it; see `without_stop`.

    Errors: InputFileError where there is no such file. GradingError where it is not a whole log of
    an accuracy run: JSON cut short, no rows, an index out of range, missing or twice, bytes that
    are not int32 ids.
    """
    entries = _entries(path)
    answers: dict[int, tuple[int, ...]] = {}
    for number, entry in enumerate(entries):
        where = f"{path}: entry {number}"
        index = entry.get("qsl_idx") if isinstance(entry, dict) else None
        if type(index) is not int or not isinstance(entry.get("data"), str):
            raise GradingError(f"{where} lacks qsl_idx or data")
        if index < 0 or (rows is not None and index >= rows):
            limit = f", outside the data set's {rows} rows" if rows is not None else ""
            raise GradingError(f"{where} has qsl_idx {index}{limit}")
        if index in answers:
            raise GradingError(f"{where} answers sample {index} a second time")
        answers[index] = _ids(entry, where)
    missing = next((i for i in range(len(answers)) if i not in answers), None)
    if missing is not None:
        raise GradingError(f"{path}: sample {missing} has no answer, later ones have")
    if _looks_like_int64(list(answers.values())):
        raise GradingError(f"{path}: ids were logged as int64, LoadGen's accuracy log needs int32")
    return sorted(answers.items())


def without_stop(ids: Sequence[int], stop_ids: frozenset[int]) -> tuple[int, ...]:
    """An answer without the stop id that stands for an empty one.

    Engines here never report the stop id that ends an answer, so the only one in a log is that of
    an answer without any other token. Dropping it gives the results file's ids and length. A stop
    id at the end of a longer answer, which other harnesses log, is counted as the official script
    counts it.
    """
    return () if len(ids) == 1 and ids[0] in stop_ids else tuple(ids)


def sha256(path: str | Path) -> str:
    """The hash of a log as the submission checker wants it, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _entries(path: str | Path) -> list[Any]:
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputFileError(f"{path}: can't be read: {error.strerror}") from error
    try:
        entries = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise GradingError(f"{path}: not whole JSON, the run was cut short: {error}") from error
    if not isinstance(entries, list):
        raise GradingError(f"{path}: not a list of answers")
    if not entries:
        raise GradingError(f"{path}: holds no answers, as after a performance run")
    return entries


def _ids(entry: dict[str, Any], where: str) -> tuple[int, ...]:
    try:
        data = bytes.fromhex(entry["data"])
    except ValueError as error:
        raise GradingError(f"{where}: data is not hexadecimal") from error
    if not data or len(data) % _ID_BYTES:
        raise GradingError(f"{where}: {len(data)} bytes of data are no int32 ids")
    if entry.get("token_count") == len(data) / (2 * _ID_BYTES):
        raise GradingError(f"{where}: ids were logged as int64, they must be int32")
    ids = array("i", data)
    if sys.byteorder == "big":
        ids.byteswap()
    if min(ids) < 0 or max(ids) > _LARGEST_ID:
        raise GradingError(f"{where}: data holds numbers that are no token ids")
    return tuple(ids)


def _looks_like_int64(answers: Sequence[Sequence[int]]) -> bool:
    """Whether every second number of every answer is 0, the upper half of a small int64."""
    return all(len(ids) % 2 == 0 and not any(ids[1::2]) for ids in answers)
