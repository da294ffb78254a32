"""Problems in LiveCodeBench's own schema: JSON lines or parquet, with compressed private tests."""

import base64
import binascii
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data import pickles
from errors import GradingError

LARGEST = 1 << 30  # bytes of one problem's tests, decompressed, and of one line


@dataclass(frozen=True)
class Case:
    """One test of a problem."""

    input: str  # standard input, or JSON arguments, one per line
    output: str  # the expected standard output, or the expected value as JSON


@dataclass(frozen=True)
class Problem:
    """A problem and its tests."""

    id: str
    function: str | None  # the function to call; None: the program reads standard input
    tests: Sequence[Case]  # those from a store are read when they are asked for


def files_in(path: Path, endings: tuple[str, ...]) -> list[Path]:
    """`path` itself, or the files with one of these endings in this folder, by name.

    Raises: GradingError.
    """
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in endings)
        if not files:
            raise GradingError(f"{path}: no {' or '.join(endings)} file in this folder")
        return files
    if not path.is_file():
        raise GradingError(f"{path}: no such file")
    return [path]


def row_count(path: Path) -> int:
    """How many problems a file has; for the progress, so a line more or less is no matter."""
    if path.suffix.lower() == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return int(pq.read_metadata(path).num_rows)
        except (OSError, pa.ArrowException) as error:
            raise _unreadable(path, error) from error
    try:
        with path.open("rb") as file:
            return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
    except OSError as error:
        raise _unreadable(path, error) from error


def problem_lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """Where each problem of a file stands, for messages, and the problem as a line of JSON."""
    if path.suffix.lower() != ".parquet":
        for number, _, line in json_lines(path):
            yield f"{path}: line {number}", line
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        source, row = pq.ParquetFile(path, pre_buffer=False), 0
        for batch in source.iter_batches(1):  # a problem may take hundreds of megabytes
            for cells in batch.to_pylist():
                yield f"{path}: row {row}", json.dumps(cells, default=str).encode() + b"\n"
                row += 1
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path, error) from error


def json_lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """The number, offset in bytes and content of each line that is not blank."""
    offset = number = 0
    try:
        with path.open("rb") as file:
            while line := file.readline(LARGEST + 1):
                number += 1
                if len(line) > LARGEST:
                    raise GradingError(f"{path}: line {number} is longer than {LARGEST} bytes")
                if line.strip():
                    yield number, offset, line
                offset += len(line)
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> GradingError:
    return GradingError(f"{path}: can't be read: {getattr(error, 'strerror', None) or error}")


def question_id_of(line: bytes, where: str) -> str:
    try:
        question_id = str(json.loads(line)["question_id"])
        question_id.encode()
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise GradingError(
            f"{where} is not a LiveCodeBench problem: JSON with a question_id"
        ) from error
    return question_id


def parse(line: bytes, where: str) -> Problem:
    """A problem in LiveCodeBench's schema, with its tests decoded. Raises: GradingError."""
    question_id = question_id_of(line, where)
    row = json.loads(line)
    try:
        tests = json.loads(row["public_test_cases"]) + _private(row["private_test_cases"])
        function = json.loads(row.get("metadata") or "{}").get("func_name")
        if function is not None:
            function.encode()
        return Problem(question_id, function, [_case(test) for test in tests])
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise GradingError(f"{where} can't be read: {type(error).__name__}: {error}") from error


def _case(test: Any) -> Case:
    case = Case(test["input"], test["output"])
    if not (isinstance(case.input, str) and isinstance(case.output, str)):
        raise TypeError("a test's input or output is not text")
    return case


def _private(packed: str) -> list[Any]:
    """Private tests: JSON, or base64 of a zlib-compressed pickle of JSON text."""
    try:
        tests = json.loads(packed)
    except ValueError:
        tests = json.loads(_unpack(packed))
    if not isinstance(tests, list):
        raise ValueError("private tests are not a list")
    return tests


def _unpack(packed: str) -> str:
    """The text in a compressed pickle of one text, which is parsed and never executed."""
    try:
        inflate = zlib.decompressobj()
        data = inflate.decompress(base64.b64decode(packed, validate=True), LARGEST)
    except (binascii.Error, zlib.error) as error:
        raise ValueError(f"private tests are not base64 of zlib data: {error}") from error
    if inflate.unconsumed_tail:
        raise ValueError(f"private tests take more than {LARGEST} bytes")
    try:
        text = pickles.parse(data)
    except Exception as error:  # damaged, it may be almost any
        raise ValueError(f"private tests are not a pickle of one text: {error}") from error
    if not isinstance(text, str):
        raise ValueError("private tests are not a pickle of one text")
    return text
