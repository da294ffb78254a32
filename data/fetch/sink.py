"""A file that is digested while it is written."""

import hashlib
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from errors import OutputError

CHUNK = 1 << 20  # bytes that are read at once, at most


@dataclass(frozen=True)
class Digest:
    """A checksum."""

    algorithm: str  # as hashlib names it
    value: str  # hexadecimal, lower case
    before: bytes = b""  # what is digested before the content, as Git does

    def __str__(self) -> str:
        return f"{self.algorithm} {self.value}"

    def begin(self) -> Any:
        """hashlib's object for another checksum of this kind."""
        return hashlib.new(self.algorithm, self.before, usedforsecurity=False)

    def of(self, path: Path, seen: Callable[[int], object] = lambda count: None) -> "Digest":
        """The checksum of a file, of this kind. `seen` is called with the number of bytes read.

        Raises: OSError.
        """
        digest = self.begin()
        with path.open("rb", buffering=0) as file:
            while data := file.read(CHUNK):
                digest.update(data)
                seen(len(data))
        return replace(self, value=digest.hexdigest())


def md5(value: str) -> Digest:
    """A checksum as md5sum prints it."""
    return Digest("md5", value.lower())


def git_lfs(value: str) -> Digest:
    """The name that Git LFS gives a file."""
    return Digest("sha256", value)


def git(value: str, size: int) -> Digest:
    """The name that Git gives a file of `size` bytes."""
    return Digest("sha1", value, b"blob %d\0" % size)


class Sink:
    """A file that is written, while a thread of its own digests what is written.

    What the file holds already is kept, and digested too. A file of any size may be written faster
    than it is digested: the thread reads it from the disk, or rather from its cache.
    """

    def __init__(self, path: Path, like: Digest, seen: Callable[[int], object]) -> None:
        """`like`: a checksum of the kind that is wanted. `seen` is called with the number
        of bytes that are added, negative for those that are dropped."""
        self.size = 0  # bytes
        self._path = path
        self._like = like
        self._seen = seen

    def __enter__(self) -> "Sink":
        try:
            # not through a link, which could lead anywhere
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
            self._file = os.fdopen(os.open(self._path, flags, 0o644), "r+b", buffering=0)
            self.size = self._file.seek(0, os.SEEK_END)
        except OSError as error:
            raise self._error(error) from error
        self._seen(self.size)
        self._begin()
        return self

    def __exit__(self, *error: object) -> None:
        self._end()
        self._file.close()

    def write(self, data: bytes) -> None:
        """Append. Raises: OutputError."""
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise self._error(error) from error
        self.size += len(data)
        self._seen(len(data))
        self._news.set()

    def clear(self) -> None:
        """Drop everything."""
        if self.size:
            self._end()
            self._seen(-self.size)
            self.size = self._file.seek(0)
            self._file.truncate()
            self._begin()

    def digest(self) -> Digest:
        """The checksum of everything written, which is on the disk then; nothing can be written
        after it. Raises: OutputError."""
        try:
            os.fsync(self._file.fileno())  # or a power cut could leave a renamed file empty
        except OSError as error:
            raise self._error(error) from error
        self._end()
        return replace(self._like, value=self._hash.hexdigest())

    def _begin(self) -> None:
        self._hash = self._like.begin()
        self._news = threading.Event()  # there is more to digest, or there will be no more
        self._ended = False
        self._thread = threading.Thread(target=self._follow, name="digest", daemon=True)
        self._thread.start()

    def _end(self) -> None:
        self._ended = True
        self._news.set()
        self._thread.join()

    def _follow(self) -> None:
        """Digest the file up to its end, which moves until `_ended`."""
        done = 0
        while True:
            self._news.clear()
            ended = self._ended
            while done < self.size and (data := os.pread(self._file.fileno(), CHUNK, done)):
                self._hash.update(data)
                done += len(data)
            if ended:
                return
            self._news.wait()

    def _error(self, error: OSError) -> OutputError:
        return OutputError(
            f"{self._path}: can't be written: {error.strerror}; what is there is kept, and the same"
            " command continues it"
        )
