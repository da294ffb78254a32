"""JSON lines that survive a crash of the process: each is written by one system call."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self, TypeVar

from errors import InputFileError, OutputError

T = TypeVar("T")


class Lines:
    """A file to which JSON objects are appended, one per line.

    `keep`: append to an existing file, after truncating an incomplete last line. Otherwise an
    existing file is replaced.

    Raises: OutputError if the file can't be written.
    """

    def __init__(self, path: str | Path, keep: bool = False) -> None:
        self.path = Path(path)
        try:
            # unbuffered: a killed process leaves at most the last line incomplete
            self._file = self.path.open("ab" if keep else "wb", buffering=0)
            if keep:
                self._file.truncate(_complete_bytes(self.path))
        except OSError as error:
            raise OutputError(f"{self.path}: can't be written: {error.strerror}") from error

    def write(self, row: dict[str, Any]) -> None:
        """Append one object. Raises: OutputError."""
        line = json.dumps(row, separators=(",", ":")).encode() + b"\n"
        try:
            written = self._file.write(line)
        except OSError as error:
            raise OutputError(f"{self.path}: can't be written: {error.strerror}") from error
        if written != len(line):
            raise OutputError(f"{self.path}: can't be written: the disk is full")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


def read_lines(path: str | Path, parse: Callable[[Any], T], what: str) -> list[T]:
    """Each line's value, passed through `parse`; an incomplete last line is skipped.

    `what`: what a line holds, for the error message, such as "a finished answer".

    Raises: InputFileError if the file can't be read, a line is not JSON, or `parse` raises
    ValueError for its value.
    """
    values = []
    try:
        with Path(path).open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break  # the writer was killed
                try:
                    values.append(parse(json.loads(line)))
                except (ValueError, RecursionError) as error:
                    raise InputFileError(f"{path}: line {number} is not {what}") from error
    except OSError as error:
        raise InputFileError(f"{path}: can't be read: {error.strerror}") from error
    return values


def _complete_bytes(path: Path) -> int:
    """The length of a file's complete lines, in bytes."""
    with path.open("rb") as file:
        return sum(len(line) for line in file if line.endswith(b"\n"))
