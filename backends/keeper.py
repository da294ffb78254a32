"""Ends an engine's processes when their run is over, however it ends.

    python -I keeper.py PID FOLDER [SHARED...]

Started by `backends.children`, in a session of its own. It notes which processes PID makes from now
on. When its standard input closes, since PID has closed it or is no more, it kills all of them and
removes FOLDER. A byte on standard input says that PID has made the processes that it needs.
"""

import os
import re
import select
import shutil
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import psutil

WATCH_S = (0.2, 20.0)  # between two looks, while processes are being made and afterwards
END_S = 5.0  # for the kernel to end what was killed


def made_by(process: psutil.Process) -> set[psutil.Process]:
    """Children of children included. A resource tracker is left alone: it has to clean up after the
    others, and ends by itself."""
    made = set()
    with suppress(psutil.Error):  # one may end while we look
        for child in process.children(recursive=True):
            if not any("resource_tracker" in word for word in child.cmdline()):
                made.add(child)
    return made


def shared_by(processes: Iterable[psutil.Process], beginnings: list[str]) -> set[Path]:
    """Files in shared memory that these processes have mapped."""
    found: set[Path] = set()
    if beginnings:
        name = re.compile(rf"/dev/shm/(?:{'|'.join(map(re.escape, beginnings))})\S+")
        for process in processes:
            with suppress(OSError):  # it may have ended
                found.update(map(Path, name.findall(Path(f"/proc/{process.pid}/maps").read_text())))
    return found


def main() -> None:
    starter = psutil.Process(int(sys.argv[1]))
    others = made_by(starter)  # ours too
    engine: set[psutil.Process] = set()
    print("watching", flush=True)
    shared: set[Path] = set()
    wait = WATCH_S[0]
    while True:
        readable, _, _ = select.select([sys.stdin], [], [], wait)
        engine |= made_by(starter) - others
        if readable or wait == WATCH_S[1]:  # not at every short look: there may be many maps
            shared |= shared_by(engine, sys.argv[3:])
        if readable:
            if not os.read(sys.stdin.fileno(), 1):
                break
            wait = WATCH_S[1]
    for process in set(engine):
        engine |= made_by(process)
    for process in engine:
        with suppress(psutil.Error):  # it may have ended before
            process.kill()
    psutil.wait_procs(engine, END_S)
    for path in shared:
        path.unlink(missing_ok=True)
    shutil.rmtree(sys.argv[2], ignore_errors=True)


if __name__ == "__main__":
    main()
