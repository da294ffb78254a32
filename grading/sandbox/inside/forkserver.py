"""The inside of a fork server: a module imported once, and a process forked from it at each start.

`sandbox.host.Host` starts it as a fresh interpreter with the standard library alone. Three
processes stand in a row: the server, which runs nothing foreign and has one thread; a supervisor a
start, which owns the working directory and ends everything when the grader lets go of the lifeline,
by its own will or because it was killed; and the confined process, which is `process`. At full
another stands beside it, the first of its process numbers, and does nothing.
"""

import contextlib
import gc
import json
import os
import platform
import select
import shutil
import signal
import socket
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

from grading.sandbox.inside import kernel, process, seccomp
from grading.sandbox.inside.limits import Limits

MESSAGE_BYTES = 1 << 16
WATCH_MS = 50  # between two looks at what a process uses; it may overshoot for that long
OWN_NUMBER = 2  # of a confined process at full
_ORPHANED_S = 1.0


def serve() -> None:
    """Fork as long as the grader is there. The task is JSON, the last argument."""
    task: dict[str, Any] = json.loads(sys.argv.pop())
    parent = os.getppid()
    control = socket.socket(fileno=task["control"])
    try:
        setting, proc = _prepare(task)
    except Exception as error:  # noqa: BLE001 - told to the other side, which ends the run
        control.send(json.dumps({"failed": f"{type(error).__name__}: {error}"}).encode())
        return
    control.send(b"{}")
    control.settimeout(_ORPHANED_S)
    while os.getppid() == parent:
        _reap()
        try:
            message, descriptors, _, _ = socket.recv_fds(control, MESSAGE_BYTES, 4)
        except TimeoutError:
            continue
        if not message:
            return
        limits = Limits(**json.loads(message))
        try:
            if os.fork() == 0:
                control.close()
                _supervise(setting, limits, descriptors, proc)
        except OSError as error:
            process.send(descriptors[0], {"failed": f"fork: {error.strerror}"})
        for descriptor in descriptors:
            os.close(descriptor)


def _prepare(task: dict[str, Any]) -> tuple[process.Setting, int]:
    """All that processes share, and a descriptor of /proc, which may be out of sight later.

    What is done here is not done at each start. A page of memory that a process is the first to
    touch costs it as much as a hundred lines of Python.
    """
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup has it ignored, by all that come after
    sys.path += task["packages"]
    handle = import_module(task["module"]).handler()
    sys.path.remove(task["root"])
    Path("/proc/self/oom_score_adj").write_text("1000")  # rather these than the grader
    proc = os.open("/proc", os.O_PATH)
    if task["level"] == "full":
        kernel.enter_namespaces([*task["readable"], *kernel.DEVICES], task["work"])
    if task["level"] != "none":
        kernel.gain_no_privileges()
        with contextlib.suppress(OSError):  # each process says so by itself
            seccomp.program(platform.machine(), OWN_NUMBER)  # is kept
    places = kernel.places(task["readable"])
    os.dup2(1, 2)  # to /dev/null, as standard output: so far errors went to the grader
    sys.stdin = sys.__stdin__ = os.fdopen(  # type: ignore[misc]  # whatever they lead to later
        0, encoding="utf-8", closefd=False
    )
    sys.stdout = sys.__stdout__ = os.fdopen(  # type: ignore[misc]
        1, "w", encoding="utf-8", closefd=False
    )
    gc.collect()
    gc.freeze()
    return process.Setting(task["level"], handle, places, task["work"]), proc


def _reap() -> None:
    """Nobody waits for a supervisor."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _supervise(setting: process.Setting, limits: Limits, descriptors: list[int], proc: int) -> None:
    """Fork the confined process and stay until it is to end. Never returns."""
    private, lifeline, standard_input, standard_output = descriptors
    folder = first = None  # what has to be watched and removed; what goes before the process
    try:
        if setting.level == "full":
            kernel.enter_own_numbers()
            first = _fork_first()
        else:
            folder = tempfile.mkdtemp(prefix="grade-", dir=setting.work)
        child = os.fork()
        if child == 0:
            os.close(lifeline)
            process.main(setting, limits, folder, (standard_input, standard_output, private))
            os._exit(0)
    except OSError as error:
        process.send(private, {"failed": str(error)})
        os._exit(1)
    for descriptor in (private, standard_input, standard_output):
        os.close(descriptor)
    try:
        _watch(lifeline, child, folder, proc, None if setting.level == "none" else limits)
    finally:
        for end in (os.killpg, os.kill):  # it may not have made a group of its own yet
            with contextlib.suppress(ProcessLookupError):
                end(child, signal.SIGKILL)
        os.waitpid(child, 0)
        if first:
            os.kill(first, signal.SIGKILL)
            os.waitpid(first, 0)
        if folder:
            remove(folder)
        os._exit(0)


def _fork_first() -> int:
    """Fork the first process of numbers of its own, which stays as long as the caller does.

    It takes all others in them with it. The kernel spares it signals that would end any other, its
    own SIGKILL among them; so a program that kills itself must not be the first.
    """
    reading, _writing = os.pipe()  # which the caller never closes
    if first := os.fork():
        os.close(reading)
        return first
    os.dup2(reading, 0)
    os.closerange(1, 4096)
    os.read(0, 1)
    os._exit(0)


def _watch(lifeline: int, child: int, folder: str | None, proc: int, limits: Limits | None) -> None:
    """Return when the grader lets go, or the process uses more than no other limit holds."""
    poll = select.poll()
    poll.register(lifeline, select.POLLIN | select.POLLHUP)
    while not poll.poll(WATCH_MS):
        if limits and _threads(child, proc) > limits.processes:
            return
        if limits and folder and is_too_full(folder):
            return


def _threads(child: int, proc: int) -> int:
    with os.fdopen(os.open(f"{child}/stat", os.O_RDONLY, dir_fd=proc), "rb") as file:
        return int(file.read().rpartition(b")")[2].split()[17])


def is_too_full(work: str) -> bool:
    """Whether a working directory holds more than it may, in bytes or in files, at any depth."""
    folders, size, count = [work], 0, 0
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    count += 1
                    if count > kernel.WORK_FILES or size > kernel.WORK_BYTES:
                        return True
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    else:
                        size += entry.stat(follow_symlinks=False).st_blocks * 512
        except (FileNotFoundError, PermissionError):
            continue  # gone meanwhile
        except OSError:
            return True  # a path too long to look at
    return size > kernel.WORK_BYTES


def remove(work: str) -> None:
    """Remove a directory, however deep a hostile program has nested it."""
    number = 0
    while folders := _folders(Path(work)):
        for folder in folders:
            for deeper in _folders(folder):  # up by one, so that no path grows long
                number += 1
                deeper.rename(f"{work}/moved-{number}")
            shutil.rmtree(folder)
    shutil.rmtree(work)


def _folders(parent: Path) -> list[Path]:
    parent.chmod(0o700)
    return [path for path in parent.iterdir() if path.is_dir() and not path.is_symlink()]
