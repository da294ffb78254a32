"""One run at a time writes to a place."""

import fcntl
import json
import logging
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO

from errors import OutputError

log = logging.getLogger(__name__)

RESERVE = 4096  # bytes of a lock file: freed when a full disk has no room for the last words


@contextmanager
def locked(path: Path) -> Iterator[IO[bytes]]:
    """Hold the lock of a file, which names this process. The lock ends with the process.

    Child processes don't inherit it. The file stays: whoever removes it could remove another's.

    Raises: OutputError naming the process that holds the lock, or if the file can't be written.
    """
    try:
        file = path.open("ab+", buffering=0)
    except OSError as error:
        raise OutputError(f"{path}: can't be written: {error.strerror}") from error
    with file:
        _lock(file, path)
        yield file


def this_process() -> dict[str, str | int]:
    """What tells a person which process it is."""
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    return {"pid": os.getpid(), "host": platform.node(), "started": now}


def _lock(file: IO[bytes], path: Path) -> None:
    try:
        # not flock, whose locks live on in forked children
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        file.seek(0)
        raise OutputError(
            f"{path.parent}: {_holder(file.read())} writes there: wait for it, end it, or choose"
            " another output"
        ) from error
    except OSError as error:
        log.warning(
            "%s can't be locked (%s): make sure that no other run writes there",
            path,
            error.strerror,
        )
    try:
        file.truncate(0)
        file.write(json.dumps(this_process()).ljust(RESERVE).encode())
    except OSError as error:
        raise OutputError(f"{path}: can't be written: {error.strerror}") from error


def _holder(content: bytes) -> str:
    try:
        holder = json.loads(content)
        return "process {pid} on {host}, started at {started},".format(**holder)
    except (ValueError, TypeError, KeyError):  # it is about to write it
        return "another run"
