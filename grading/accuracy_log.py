"""LoadGen's accuracy log: one entry per answer, with its token ids as int32 bytes in hexadecimal.

The public grader drops entries that it can't use, averages over the rest, and reads int64 ids as
twice as many int32 ids. Here an entry that can't be used is an error: an accuracy figure is valid
for all samples or not at all. Int64 ids are recognised by their upper halves and read correctly.
"""

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from errors import GradingError, InputFileError
from terminal import quoted

if TYPE_CHECKING:
    import numpy as np

_LARGEST_ID = 1 << 24  # above any vocabulary, and below the bits of any float of normal size
_BLANKS = " \t\r\n"
_NAMED = 5  # samples that a message names at most


@dataclass(frozen=True)
class AccuracyLog:
    """The contents of an accuracy log."""

    answers: "Sequence[tuple[int, np.ndarray]]"  # (sample index, int32 token ids), by index
    id_bytes: int  # size of an id in the log: 4, as MLPerf's rules require, or 8


def read(path: str | Path, rows: int | None = None) -> AccuracyLog:
    """The answers in a log, in order of sample index.

    A log is a JSON list, as LoadGen writes it, or JSON lines. `rows`: the number of samples in the
    data set, if known. An empty answer is in the log as one stop id: see `without_stop`.

    Raises: InputFileError if the file can't be read; GradingError if it is not the complete log of
    an accuracy run: truncated JSON, no entries, a sample index that is out of range, missing or
    repeated, or data that are not token ids.
    """
    answers: dict[int, np.ndarray] = {}
    counts: dict[int, int] = {}  # token_count of the entries that have it, by sample index
    for number, entry in enumerate(entries(path)):
        where = f"{path}: entry {number}"
        index = sample_index(entry, where)
        if index < 0 or (rows is not None and index >= rows):
            limit = f", outside the data set's {rows} rows" if rows is not None else ""
            raise GradingError(f"{where} has qsl_idx {quoted(index)}{limit}")
        if index in answers:
            raise GradingError(f"{where} answers sample {index} a second time")
        answers[index] = int32_values(entry["data"], where)
        if type(entry.get("token_count")) is int:
            counts[index] = entry["token_count"]
    if not answers:
        raise GradingError(
            f"{path}: no answers: only an accuracy run logs them, not a performance run"
        )
    refuse_gaps(answers, str(path))
    id_bytes = _id_bytes(answers, counts, path)
    for index, values in answers.items():
        ids = values[::2].copy() if id_bytes == 8 else values
        if ids.min() < 0 or ids.max() > _LARGEST_ID:
            raise GradingError(
                f"{path}: the data of sample {index} are not token ids (perhaps floats: LoadGen"
                " must get int32 ids)"
            )
        answers[index] = ids
    return AccuracyLog(sorted(answers.items()), id_bytes)


def sample_index(entry: Any, where: str) -> int:
    """The sample that an entry answers.

    Raises: GradingError if it has no such index, or no data.
    """
    index = entry.get("qsl_idx") if isinstance(entry, dict) else None
    if type(index) is not int or not isinstance(entry.get("data"), str):
        raise GradingError(f"{where} lacks qsl_idx (an integer) or data (text)")
    return index


def refuse_gaps(indices: Collection[int], where: str) -> None:
    """Raises: GradingError naming the samples without an answer that precede one with an answer."""
    if missing := sorted(set(range(max(indices) + 1)) - set(indices)):
        raise GradingError(
            f"{where}: no answers to samples {first_few(missing)}, but answers to later ones"
        )


def first_few(indices: Sequence[int]) -> str:
    """The first few of many samples, for a message."""
    return ", ".join(map(str, indices[:_NAMED])) + (", …" if len(indices) > _NAMED else "")


def without_stop(ids: "np.ndarray", stop_ids: frozenset[int]) -> "np.ndarray":
    """Token ids without the stop id that was logged in place of an empty answer.

    Engines here never report the stop id that ends an answer, so a log has one only for an answer
    without any other token. Without it, ids and length are those in the results file. A stop id at
    the end of a longer answer, as other harnesses log it, counts as a token, as in the official
    script.
    """
    return ids[:0] if len(ids) == 1 and int(ids[0]) in stop_ids else ids


def int32_values(data: str, where: str) -> "np.ndarray":
    """Hexadecimal bytes as int32 values: token ids, or both halves of int64 ids.

    Raises: GradingError if they are not hexadecimal or not a multiple of four bytes.
    """
    import numpy as np

    try:
        raw = bytes.fromhex(data)
    except ValueError as error:
        raise GradingError(f"{where}: data is not hexadecimal") from error
    if not raw or len(raw) % 4:
        raise GradingError(f"{where}: data of {len(raw)} bytes can't be int32 ids")
    return np.frombuffer(raw, "<i4").astype(np.int32)


def entries(path: str | Path) -> Iterator[Any]:
    """The values of a JSON list, or of a file of JSON values, one at a time.

    Raises: InputFileError if the file can't be read; GradingError if it is not JSON, or incomplete.
    """
    path = Path(path)
    try:
        raw = path.read_bytes()
        text = raw.decode(json.detect_encoding(raw))  # Windows tools write UTF-16 or add a BOM
    except OSError as error:
        raise InputFileError(f"{path}: can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise GradingError(
            f"{path}: not JSON: byte {error.start} is not valid {error.encoding}"
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
            raise _truncated(path, count, text, position) from error
        yield entry
        count += 1
        if is_list:
            position = _after_blanks(text, position)
            if text[position : position + 1] == "]":
                break
            if text[position : position + 1] != ",":
                raise _truncated(path, count, text, position)
            position += 1
    if _after_blanks(text, position + 1) != len(text):
        raise GradingError(f"{path}: there is more text after the end of the JSON list")


def _after_blanks(text: str, position: int) -> int:
    while position < len(text) and text[position] in _BLANKS:
        position += 1
    return position


def _truncated(path: Path, count: int, text: str, position: int) -> GradingError:
    line = text.count("\n", 0, position) + 1
    return GradingError(
        f"{path}: line {line}: incomplete JSON after {count} answers: the run did not finish, so"
        " its accuracy is unknown"
    )


def _id_bytes(answers: "dict[int, np.ndarray]", counts: dict[int, int], path: str | Path) -> int:
    """The size of an id in bytes, by the log's token counts, else by whether upper halves are 0."""
    sizes = {4 * len(answers[index]) / count if count else 0 for index, count in counts.items()}
    narrow = all(len(values) % 2 == 0 and not values[1::2].any() for values in answers.values())
    if sizes and not sizes & {4.0, 8.0}:
        raise GradingError(
            f"{path}: no answer has token_count ids of 4 bytes in its data: LoadGen must get int32"
            " ids"
        )
    if 8.0 in sizes and not (narrow and sizes == {8.0}):
        raise GradingError(
            f"{path}: some answers have ids of 8 bytes, others of 4: LoadGen must get int32 ids"
        )
    return 8 if 8.0 in sizes or (narrow and not sizes) else 4
