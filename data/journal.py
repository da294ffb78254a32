"""The journal of a run: every finished answer, in a file that survives a crash.

The file starts with the run's inputs, so that its answers never get into a run with other inputs.
Each answer is a record with a checksum. A reader drops records that are incomplete or altered, says
so, and goes on with the next one. `python -m data.journal FILE` prints a journal as JSON lines.
"""

import argparse
import json
import logging
import mmap
import os
import struct
import threading
import time
import zlib
from array import array
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import entrypoint
from backends.types import FINISHES, Completion
from errors import InputFileError, OutputError
from ref_dsinfer.files import write_whole

log = logging.getLogger(__name__)

Answer = tuple[int, Completion]  # sample index (row of the data set), and its completion

MAGIC = b"answers1"
SYNC_S = 0.5  # from an answer to its place on the disk, if the disk keeps up
TOGETHER = 16  # answers in a system call; for many more, memory that is new would take most time
FLUSH_S = 20.0  # for the disk to keep up at the end

# No byte of it is 0, unlike the highest byte of each token id: it can't be inside an answer's ids.
_MARK = b"\xa5answer\x5a"
_HEADER = struct.Struct("<8sII")  # MAGIC, bytes of JSON, their CRC-32
_START = struct.Struct("<8sI")  # _MARK, CRC-32 of all that follows
_FIELDS = struct.Struct("<QQqqII")  # index, request id, first_ns, last_ns, finish, tokens
_ID_BYTES = 4


class Journal:
    """Appends answers to a new file; one of the same name is replaced, and may be `kept` from.

    A thread of its own writes them, at once, and flushes them to disk after `SYNC_S` at most: a
    slow disk never holds up the event loop.

    Raises: OutputError if the file can't be written; `add` and `flush` for what the thread met.
    """

    def __init__(
        self, path: str | Path, inputs: Mapping[str, Any], kept: Iterable[Answer] = ()
    ) -> None:
        """`inputs`: what the answers depend on, as JSON values."""
        self.path = Path(path)
        self._header = _header(inputs)
        self._batch: list[Answer] = []
        self._changed = threading.Condition()
        self._closing = False
        self._error: OSError | None = None
        kept = list(kept)
        try:
            if kept:  # the old journal stays until the new one has all that is kept of it
                write_whole(self.path, lambda partial: self._write_kept(partial, kept))
                self._header = b""
            # unbuffered: what is written survives the process
            self._file = self.path.open("ab" if kept else "wb", buffering=0)
        except OSError as error:
            raise self._failure(error) from error
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._thread.start()
        entrypoint.before_failing.append(self._finish)

    def add(self, sample_index: int, completion: Completion) -> None:
        """Append one answer. `sample_index` is its row in the data set."""
        if self._error:
            raise self._failure(self._error)
        with self._changed:
            self._batch.append((sample_index, completion))
            self._changed.notify()

    def close(self) -> None:
        """Write and flush everything."""
        entrypoint.before_failing.remove(self._finish)
        self._finish()
        if self._thread.is_alive():
            raise OutputError(f"{self.path}: can't be written: the disk takes over {FLUSH_S:g} s")
        if self._error:
            raise self._failure(self._error)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            self.close()
        except OutputError as failure:
            if error is None:
                raise
            log.error("%s", failure)  # what ended the run came first

    def _finish(self, reason: str = "") -> None:
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(FLUSH_S)

    def _run(self) -> None:
        """Write what arrives, and flush it before it is too old."""
        synced_s = time.monotonic()
        dirty = False
        try:
            with self._file:
                while True:
                    with self._changed:
                        if not (self._batch or self._closing):
                            self._changed.wait(SYNC_S if dirty else None)
                        batch, self._batch = self._batch, []
                        closing = self._closing
                    for start in range(0, len(batch), TOGETHER):
                        self._write(batch[start : start + TOGETHER])
                        dirty = True
                    if dirty and (closing or time.monotonic() - synced_s >= SYNC_S):
                        os.fsync(self._file.fileno())
                        synced_s, dirty = time.monotonic(), False
                    if closing and not batch:
                        return
        except OSError as error:
            self._error = error

    def _write(self, batch: list[Answer]) -> None:
        data = b"".join([self._header, *(part for answer in batch for part in _record(*answer))])
        self._header = b""
        rest = memoryview(data)
        while rest:  # a system call writes 2 GiB at most, and less on a disk that fills up
            rest = rest[self._file.write(rest) :]

    def _write_kept(self, path: Path, kept: list[Answer]) -> None:
        with path.open("wb") as file:
            file.write(self._header)
            for answer in kept:
                file.writelines(_record(*answer))

    def _failure(self, error: OSError) -> OutputError:
        return OutputError(f"{self.path}: can't be written: {error.strerror}")


def read_journal(path: str | Path) -> list[Answer]:
    """The answers of a journal, in the order in which they finished.

    Their token ids are views of the file, which stays mapped; it may be appended to or replaced.
    Records that are incomplete or altered are dropped, with a warning.

    Raises: InputFileError if the file can't be read, or is not a journal.
    """
    _, answers = _read(Path(path))
    return list(answers)


def read_inputs(path: str | Path) -> dict[str, Any]:
    """What a journal's answers depend on, by names for people; empty if it has no answer yet.

    Raises: InputFileError if the file can't be read, or is not a journal.
    """
    inputs, _ = _read(Path(path))
    return inputs


def resumable(path: str | Path, inputs: Mapping[str, Any]) -> list[Answer]:
    """The answers of an interrupted run with the same `inputs`; none if there is no journal.

    Raises: InputFileError naming the inputs that differ.
    """
    path = Path(path)
    if not path.exists():
        log.warning("%s: no journal to resume from, all samples will be answered", path)
        return []
    before, records = _read(path)
    answers = list(records)
    changes = [
        f"{name} was {before.get(name)!r} and is {value!r}"
        for name, value in json.loads(json.dumps(inputs)).items()
        if before.get(name) != value
    ]
    if answers and changes:
        raise InputFileError(
            f"{path}: its answers belong to another run: {', '.join(changes)}: run without"
            " --resume, or as before"
        )
    log.info("%s: %d answers kept", path, len(answers))
    return list(dict(answers).items())  # each row once, whatever has happened to the file


def _read(path: Path) -> tuple[dict[str, Any], Iterator[Answer]]:
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else None
    except OSError as error:
        raise InputFileError(f"{path}: can't be read: {error.strerror}") from error
    if data is None:  # nothing was finished
        return {}, iter(())
    start = data[: _HEADER.size]
    if not MAGIC.startswith(start[: len(MAGIC)]):
        raise InputFileError(f"{path}: not a journal that run_eval or run_mlperf wrote")
    if len(start) == _HEADER.size:
        _, length, checksum = _HEADER.unpack(start)
        end = _HEADER.size + length
        content = data[_HEADER.size : end]
        if len(content) == length:
            if zlib.crc32(content) != checksum:
                raise InputFileError(
                    f"{path}: its start is damaged, so the inputs of its answers are unknown"
                )
            return json.loads(content), _answers(path, data, end)
    log.warning("%s: dropped %d bytes: it ends before the first answer", path, size)
    return {}, iter(())


def _answers(path: Path, data: mmap.mmap, position: int) -> Iterator[Answer]:
    view = memoryview(data)
    while position < len(data):
        answer, end = _answer(view, position)
        if answer:
            yield answer
        else:
            end = position + 1
            while (end := data.find(_MARK, end)) >= 0 and not _answer(view, end)[0]:
                end += 1
            end = len(data) if end < 0 else end
            log.warning(
                "%s: dropped %d bytes from byte %d on: %s",
                path,
                end - position,
                position,
                "the last record is incomplete" if end == len(data) else "a record was altered",
            )
        position = end


def _answer(view: memoryview, start: int) -> tuple[Answer | None, int]:
    """The answer of the record at `start`, None if it is no valid record, and the record's end."""
    fields_at = start + _START.size
    ids_at = fields_at + _FIELDS.size
    if ids_at > len(view):
        return None, start
    mark, checksum = _START.unpack_from(view, start)
    index, request_id, first_ns, last_ns, finish, count = _FIELDS.unpack_from(view, fields_at)
    end = ids_at + count * _ID_BYTES
    if mark != _MARK or end > len(view) or zlib.crc32(view[fields_at:end]) != checksum:
        return None, start
    ids = view[ids_at:end].cast("i")
    return (index, Completion(request_id, ids, FINISHES[finish], first_ns, last_ns)), end


def _header(inputs: Mapping[str, Any]) -> bytes:
    content = json.dumps(inputs).encode()
    return _HEADER.pack(MAGIC, len(content), zlib.crc32(content)) + content


def _record(index: int, completion: Completion) -> tuple[bytes, bytes, array | memoryview]:
    ids = completion.token_ids
    fields = _FIELDS.pack(
        index,
        completion.request_id,
        completion.first_ns,
        completion.last_ns,
        FINISHES.index(completion.finish),
        len(ids),
    )
    return _START.pack(_MARK, zlib.crc32(ids, zlib.crc32(fields))), fields, ids


def main() -> None:
    parser = argparse.ArgumentParser(description="Print a journal as JSON lines: inputs, answers.")
    parser.add_argument("file", type=Path)
    inputs, answers = _read(parser.parse_args().file)
    print(json.dumps({"inputs": inputs}))
    for index, completion in answers:
        ids = completion.token_ids.tolist()
        print(json.dumps({"sample_index": index, **completion._asdict(), "token_ids": ids}))


if __name__ == "__main__":
    entrypoint.run(main)
