"""JSON lines that survive a crash: each is handed to the operating system at once."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self, TypeVar

from errors import InputFileError, OutputError

T = TypeVar("T")


class Lines:
    """A file that JSON objects are appended to, one a line.

    `keep`: go on after the whole lines that the file has; a torn last one is cut off. Otherwise a
    file of that name is replaced.

    Errors: OutputError where the file can't be written.
    """

    def __init__(self, path: str | Path, keep: bool = False) -> None:
        self.path = Path(path)
        try:
            # unbuffered: a line is one system call, so a killed process tears the last one at most
            self._file = self.path.open("ab" if keep else "wb", buffering=0)
            if keep:
                self._file.truncate(_whole(self.path))
        except OSError as error:
            raise OutputError(f"{self.path}: can't be written: {error.strerror}") from error

    def write(self, row: dict[str, Any]) -> None:
        """Append one object. Errors: OutputError."""
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
    """What `parse` makes of each line's value; a torn last line, left by a crash, is skipped.

    Errors: InputFileError where the file is missing, or a whole line is not JSON or not `what`,
    which `parse` says by a ValueError.
    """
    found = []
    try:
        with Path(path).open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break  # torn because the writer was killed
                try:
                    found.append(parse(json.loads(line)))
                except (ValueError, RecursionError) as error:
                    raise InputFileError(f"{path}: line {number} is not {what}") from error
    except OSError as error:
        raise InputFileError(f"{path}: can't be read: {error.strerror}") from error
    return found


def _whole(path: Path) -> int:
    """The length of a file's whole lines, in bytes."""
    with path.open("rb") as file:
        return sum(len(line) for line in file if line.endswith(b"\n"))
