"""LoadGen's accuracy log: one row an answer, its token ids as the hexadecimal bytes of int32s.

The public grader drops the rows it can't use, averages over the rest, and reads ids of eight bytes
as twice as many of four. Here each row that can't be used is an error: an accuracy says something
about all the samples or nothing. Ids of eight bytes are told by their upper halves, and read so.
"""

import hashlib
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from errors import GradingError, InputFileError
from terminal import quoted

if TYPE_CHECKING:
    import numpy as np

_LARGEST_ID = 1 << 24  # far above any vocabulary; floats read as integers lie far above it
_BLANKS = " \t\r\n"
_NAMED = 5  # samples that a message names at most


@dataclass(frozen=True)
class AccuracyLog:
    """What a log holds."""

    answers: "Sequence[tuple[int, np.ndarray]]"  # sample index, and token ids as int32, in order
    id_bytes: int  # of an id in the log: 4, as LoadGen's rules want it, or 8


def read(path: str | Path, rows: int | None = None) -> AccuracyLog:
    """The answers in a log, in order of the sample's index.

    A log is a JSON list, as LoadGen writes it, or an object a line. `rows`: how many samples the
    data set has, where it is known. An answer that was empty is in the log as the one stop id that
    LoadGen was given for it; see `without_stop`.

    Raises: InputFileError if there is no such file. GradingError if it is not a whole log of
    an accuracy run: JSON cut short, no rows, an index out of range, missing or twice, bytes that
    are not ids.
    """
    answers: dict[int, np.ndarray] = {}
    counts: dict[int, int] = {}  # ids in an answer, as LoadGen was told, where the log says it
    for number, entry in enumerate(_entries(Path(path))):
        where = f"{path}: entry {number}"
        index = entry.get("qsl_idx") if isinstance(entry, dict) else None
        if type(index) is not int or not isinstance(entry.get("data"), str):
            raise GradingError(f"{where} lacks qsl_idx or data")
        if index < 0 or (rows is not None and index >= rows):
            limit = f", outside the data set's {rows} rows" if rows is not None else ""
            raise GradingError(f"{where} has qsl_idx {quoted(index)}{limit}")
        if index in answers:
            raise GradingError(f"{where} answers sample {index} a second time")
        answers[index] = halves(entry["data"], where)
        if type(entry.get("token_count")) is int:
            counts[index] = entry["token_count"]
    if not answers:
        raise GradingError(f"{path}: holds no answers, as after a performance run")
    refuse_gaps(answers, str(path))
    id_bytes = _id_bytes(answers, counts, path)
    for index, found in answers.items():
        ids = found[::2].copy() if id_bytes == 8 else found
        if ids.min() < 0 or ids.max() > _LARGEST_ID:
            raise GradingError(
                f"{path}: the data of sample {index} holds numbers that are no token ids"
                " (floats, perhaps: LoadGen's log needs int32)"
            )
        answers[index] = ids
    return AccuracyLog(sorted(answers.items()), id_bytes)


def refuse_gaps(indices: Collection[int], where: str) -> None:
    """Raises: GradingError naming the samples that have no answer while later ones have."""
    if missing := sorted(set(range(max(indices) + 1)) - set(indices)):
        raise GradingError(f"{where}: no answer to samples {named(missing)}, but to later ones")


def named(indices: Sequence[int]) -> str:
    """The first few of many samples, for a message."""
    return ", ".join(map(str, indices[:_NAMED])) + (", …" if len(indices) > _NAMED else "")


def without_stop(ids: "np.ndarray", stop_ids: frozenset[int]) -> "np.ndarray":
    """An answer without the stop id that stands for an empty one.

    Engines here never report the stop id that ends an answer, so the only one in a log is that of
    an answer without any other token. Dropping it gives the results file's ids and length. A stop
    id at the end of a longer answer, which other harnesses log, is counted as the official script
    counts it.
    """
    return ids[:0] if len(ids) == 1 and int(ids[0]) in stop_ids else ids


def sha256(path: str | Path) -> str:
    """The hash of a log as the submission checker wants it, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def halves(data: str, where: str) -> "np.ndarray":
    """Hexadecimal bytes as int32: ids, or the halves of such as were logged in eight bytes.

    Raises: GradingError if they are not such bytes.
    """
    import numpy as np

    try:
        raw = bytes.fromhex(data)
    except ValueError as error:
        raise GradingError(f"{where}: data is not hexadecimal") from error
    if not raw or len(raw) % 4:
        raise GradingError(f"{where}: {len(raw)} bytes of data are no int32 ids")
    return np.frombuffer(raw, "<i4").astype(np.int32)


def _entries(path: Path) -> Iterator[Any]:
    """The values of a JSON list, or of a file of JSON values; one at a time."""
    try:
        raw = path.read_bytes()
        text = raw.decode(json.detect_encoding(raw))  # editors and shells add a byte-order mark
    except OSError as error:
        raise InputFileError(f"{path}: can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise GradingError(
            f"{path}: not JSON: byte {error.start} is no {error.encoding}"
        ) from error
    del raw
    position = _after_blanks(text, 0)
    is_list = text[position : position + 1] == "["
    position += is_list
    decode = json.JSONDecoder().raw_decode
    count = 0
    while True:
        position = _after_blanks(text, position)
        if is_list and count == 0 and text[position : position + 1] == "]":
            break
        if not is_list and position == len(text):
            return
        try:
            entry, position = decode(text, position)
        except (ValueError, RecursionError) as error:
            raise _cut(path, count, text, position) from error
        yield entry
        count += 1
        if is_list:
            position = _after_blanks(text, position)
            if text[position : position + 1] == "]":
                break
            if text[position : position + 1] != ",":
                raise _cut(path, count, text, position)
            position += 1
    if _after_blanks(text, position + 1) != len(text):
        raise GradingError(f"{path}: something follows the end of the list")


def _after_blanks(text: str, position: int) -> int:
    while position < len(text) and text[position] in _BLANKS:
        position += 1
    return position


def _cut(path: Path, count: int, text: str, position: int) -> GradingError:
    line = text.count("\n", 0, position) + 1
    return GradingError(
        f"{path}: line {line}: not whole JSON after {count} answers: the run was cut short, so its"
        " accuracy is unknown"
    )


def _id_bytes(answers: "dict[int, np.ndarray]", counts: dict[int, int], path: str | Path) -> int:
    """How many bytes an id has: by the counts in the log, else by upper halves that are all 0."""
    sizes = {4 * len(answers[index]) / count if count else 0 for index, count in counts.items()}
    narrow = all(len(found) % 2 == 0 and not found[1::2].any() for found in answers.values())
    if sizes and not sizes & {4.0, 8.0}:
        raise GradingError(f"{path}: the token_count of no answer fits its data: no int32 ids")
    if 8.0 in sizes and not (narrow and sizes == {8.0}):
        raise GradingError(f"{path}: of some answers an id has eight bytes, but not of all")
    return 8 if 8.0 in sizes or (narrow and not sizes) else 4
