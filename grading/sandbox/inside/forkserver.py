"""The fork server: imports a module once and forks a confined process from it on each request.

`sandbox.forkserver.ForkServer` starts it as an isolated interpreter. There are three generations of
processes: the server, which runs none of the model's code and has one thread; one supervisor per
confined process, which owns the working directory and kills everything when the grader closes its
end of the lifeline, or is killed; and the confined process itself, see `process`. At full each
supervisor has another child, which is init (PID 1) of the PID namespace and does nothing.
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
WATCH_MS = 50  # between two checks of what a process uses; it may exceed limits for that long
OWN_PID = 2  # of a confined process in its own PID namespace
_ORPHANED_S = 1.0


def serve() -> None:
    """Fork processes until the grader ends. The last argument is the task, as JSON."""
    task: dict[str, Any] = json.loads(sys.argv.pop())
    parent = os.getppid()
    control = socket.socket(fileno=task["control"])
    try:
        setting, proc = _prepare(task)
    except Exception as error:  # noqa: BLE001 - reported to the grader, which ends the run
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
    """The setting that all processes share, and a descriptor of /proc, which gets hidden at full.

    Work done here need not be repeated for each process. The first write to a page of memory costs
    a process as much as a hundred lines of Python.
    """
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup all processes would ignore it
    sys.path += task["packages"]
    handle = import_module(task["module"]).handler()
    sys.path.remove(task["root"])
    # if memory runs out, the kernel is to kill these processes, not the grader
    Path("/proc/self/oom_score_adj").write_text("1000")
    proc = os.open("/proc", os.O_PATH)
    if task["level"] == "full":
        kernel.enter_namespaces([*task["readable"], *kernel.DEVICES], task["work"])
    if task["level"] != "none":
        kernel.forbid_new_privileges()
        with contextlib.suppress(OSError):  # each process reports it
            seccomp.program(platform.machine(), OWN_PID)  # fill the cache
    rules = kernel.landlock_rules(task["readable"])
    os.dup2(1, 2)  # to /dev/null, as standard output; until now errors went to the grader
    sys.stdin = sys.__stdin__ = os.fdopen(  # type: ignore[misc]  # each process redirects them
        0, encoding="utf-8", closefd=False
    )
    sys.stdout = sys.__stdout__ = os.fdopen(  # type: ignore[misc]
        1, "w", encoding="utf-8", closefd=False
    )
    gc.collect()
    gc.freeze()
    return process.Setting(task["level"], handle, rules, task["work"]), proc


def _reap() -> None:
    """Reap supervisors that have ended; nothing else waits for them."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _supervise(setting: process.Setting, limits: Limits, descriptors: list[int], proc: int) -> None:
    """Fork the confined process, and kill it and clean up when its time is over. Never returns."""
    private, lifeline, standard_input, standard_output = descriptors
    folder = init = None  # the working directory to watch and remove; the PID of init
    try:
        if setting.level == "full":
            kernel.unshare_pids()
            init = _fork_init()
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
        for kill in (os.killpg, os.kill):  # it may not have made its own process group yet
            with contextlib.suppress(ProcessLookupError):
                kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        if init:
            os.kill(init, signal.SIGKILL)
            os.waitpid(init, 0)
        if folder:
            remove(folder)
        os._exit(0)


def _fork_init() -> int:
    """Fork init of the new PID namespace, which runs as long as the caller does.

    When it ends, the kernel kills the whole namespace. The kernel shields init from signals from
    within, even its own SIGKILL, so the confined process, which may kill itself, must not be init.
    """
    reading, _writing = os.pipe()  # the caller never closes the end for writing
    if init := os.fork():
        os.close(reading)
        return init
    os.dup2(reading, 0)
    os.closerange(1, 4096)
    os.read(0, 1)
    os._exit(0)


def _watch(lifeline: int, child: int, folder: str | None, proc: int, limits: Limits | None) -> None:
    """Return when the grader closes the lifeline, or a limit that only we enforce is exceeded."""
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
            continue  # removed meanwhile
        except OSError:
            return True  # the path has grown too long to open
    return size > kernel.WORK_BYTES


def remove(work: str) -> None:
    """Remove a directory, however deep a hostile program has nested it."""
    number = 0
    while folders := _folders(Path(work)):
        for folder in folders:
            for deeper in _folders(folder):  # moved up one level, so that paths stay short
                number += 1
                deeper.rename(f"{work}/moved-{number}")
            shutil.rmtree(folder)
    shutil.rmtree(work)


def _folders(parent: Path) -> list[Path]:
    parent.chmod(0o700)
    return [path for path in parent.iterdir() if path.is_dir() and not path.is_symlink()]
