"""Kills an engine's processes when their run is over, however it ends.

    python -I keeper.py PID FOLDER [SHARED...]

Started by `backends.children`, in a session of its own. It records which processes PID starts from
now on. When its standard input closes, because PID closed it or died, it kills all of them and
removes FOLDER. A byte on standard input means that PID has started all processes it needs.
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

WATCH_S = (0.2, 20.0)  # between checks, while processes are being started and afterwards
SHARED_MEMORY = Path("/dev/shm")
END_S = 5.0  # for killed processes to be gone


def made_by(process: psutil.Process) -> set[psutil.Process]:
    """A process's descendants, without resource trackers: they clean up after the others, and end
    by themselves."""
    descendants: set[psutil.Process] = set()
    try:
        children = process.children(recursive=True)
    except psutil.Error:  # it has ended
        return descendants
    for child in children:
        with suppress(psutil.Error):  # one may end meanwhile
            if not any("resource_tracker" in word for word in child.cmdline()):
                descendants.add(child)
    return descendants


def stopped(processes: set[psutil.Process]) -> set[psutil.Process]:
    """These processes and their descendants, stopped, so that they can't make or map any more."""
    done: set[psutil.Process] = set()
    while fresh := processes - done:
        for process in fresh:
            with suppress(psutil.Error):  # it may have ended before
                process.suspend()
        done |= fresh
        processes = done.union(*map(made_by, fresh))
    return done


def named(prefixes: list[str]) -> set[Path]:
    """Files in shared memory whose names have one of these prefixes."""
    return {path for path in SHARED_MEMORY.iterdir() if path.name.startswith(tuple(prefixes))}


def mapped_by(processes: Iterable[psutil.Process], files: set[Path]) -> set[Path]:
    """Those of the files that one of these processes has mapped. Compared by inode, since a
    semaphore is mapped under the name it had at first."""
    by_inode = {}
    for path in files:
        with suppress(FileNotFoundError):
            by_inode[str(path.stat().st_ino)] = path
    mapped = set()
    for process in processes if by_inode else ():
        with suppress(OSError):  # it may have ended
            maps = Path(f"/proc/{process.pid}/maps").read_text()
            inodes = re.findall(rf" (\d+) +{SHARED_MEMORY}/", maps)
            mapped |= {by_inode[inode] for inode in inodes if inode in by_inode}
    return mapped


def main() -> None:
    starter = psutil.Process(int(sys.argv[1]))
    others = made_by(starter)  # this process among them
    engine: set[psutil.Process] = set()
    print("watching", flush=True)
    of_others = named(sys.argv[3:])
    shared: set[Path] = set()
    wait = WATCH_S[0]
    while True:
        readable, _, _ = select.select([sys.stdin], [], [], wait)
        engine |= made_by(starter) - others
        shared |= mapped_by(engine, named(sys.argv[3:]) - shared - of_others)
        if readable:
            if not os.read(sys.stdin.fileno(), 1):
                break
            wait = WATCH_S[1]
    engine |= stopped(engine)
    shared |= mapped_by(engine, named(sys.argv[3:]) - shared - of_others)
    for process in engine:
        with suppress(psutil.Error):  # it may have ended before
            process.kill()
    psutil.wait_procs(engine, END_S)
    for path in shared:
        path.unlink(missing_ok=True)
    shutil.rmtree(sys.argv[2], ignore_errors=True)


if __name__ == "__main__":
    main()
