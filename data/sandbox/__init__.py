"""Processes that run what a model wrote: limited, killable, and told nothing they need not know.

A `Sandbox` starts them. A `Confined` process is a fresh interpreter in its own session, with an
empty environment and an empty working directory. It answers one JSON line with another on a private
socket; its standard input and output are files of ours, so what it prints is read without its help.
`confined` is its side of the matter.

This is a first fence: limits on memory, CPU time, files and wall-clock time, and Python-level
guards. It does not yet hold off code that attacks the interpreter itself.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ref_dsinfer.errors import GradingError

START_S = 60.0  # an interpreter and its imports, on a machine that is busy
LEVELS = ("full", "kernel", "bwrap", "container", "none")
REPLY_BYTES = 64 << 20
_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Limits:
    """What the operating system holds a process to."""

    memory: int = 4 << 30  # bytes of address space
    cpu: int = 3600  # seconds
    file: int = 32 << 20  # bytes of any file written, standard output included
    descriptors: int = 64  # open files
    processes: int = 256  # threads


class SandboxError(GradingError):
    """No process can be started: nothing that needs one can be graded."""


class Ended(Exception):
    """A confined process will not answer any more: it ended, or broke the protocol."""


class TimeLimit(Ended):
    """A confined process took too long."""


class Sandbox:
    """Where processes are started from; closed, all of them are killed.

    `level`: how well they are confined, one of `LEVELS`; None where nothing at or above `minimum`
    holds, and nothing can be started then. `reason`: why, or why it is not the strongest, for
    users. `canaries`: which small attacks, tried at that level, were "held" and which are "open".
    """

    level: str | None
    reason: str
    canaries: Mapping[str, str]

    def __init__(self, level: str = "auto", minimum: str = "kernel") -> None:
        # to be found by running canaries; so far there is one fence, and nothing is tried
        self.level, self.reason, self.canaries = "kernel", "", {}
        self._live: set[Confined] = set()
        self._lock = threading.Lock()

    def start(self, module: str, limits: Limits) -> "Confined":
        """A process that serves the `handler()` of a module of ours. May be called in any thread.

        Errors: SandboxError where a process can't be started or its imports fail.
        """
        process = Confined(module, limits, self._forget)
        with self._lock:
            self._live.add(process)
        return process

    def _forget(self, process: "Confined") -> None:
        with self._lock:
            self._live.discard(process)

    def end_all(self) -> None:
        """Kill every process there is: the run has been interrupted."""
        with self._lock:
            for process in self._live:
                process.end()

    def close(self) -> None:
        """Kill what is left."""
        with self._lock:
            left = list(self._live)
        for process in left:
            process.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Confined:
    """A process that serves the handler of a module of this package; see `confined`.

    Errors: SandboxError where a process can't be started or its imports fail.
    """

    def __init__(self, module: str, limits: Limits, on_close: Callable[["Confined"], None]) -> None:
        self._on_close = on_close
        self._limits = limits
        self._stack = contextlib.ExitStack()
        try:
            self._start(module)
        except OSError as error:
            self.close()
            raise SandboxError(f"a process to grade in can't be started: {error}") from error

    def _start(self, module: str) -> None:
        folder = self._stack.enter_context(
            tempfile.TemporaryDirectory(prefix="grade-", ignore_cleanup_errors=True)
        )
        self._input = self._stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
        self._output = self._stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
        self._socket, theirs = map(self._stack.enter_context, socket.socketpair())
        task = {
            "module": module,
            "socket": theirs.fileno(),
            "parent": os.getpid(),
            "root": str(_ROOT),
            "packages": [path for path in sys.path if path.endswith("-packages")],
            "limits": asdict(self._limits),
        }
        # no -m and no PYTHONPATH: a bare file, so that the child imports only what it names
        child = _ROOT / "data" / "sandbox" / "confined.py"
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", "-X", "utf8", str(child), json.dumps(task)],
            stdin=self._input,
            stdout=self._output,
            stderr=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            cwd=folder,
            env={"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,
        )
        self._stack.callback(self._kill)
        theirs.close()
        try:
            ready = self._receive(time.monotonic() + START_S)
        except Ended as error:
            self.close()
            raise SandboxError(f"a process to grade in did not start: {error}") from error
        if "failed" in ready:
            self.close()
            raise SandboxError(f"a process to grade in failed to start: {ready['failed']}")

    def ask(self, message: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Send a message and wait for the answer, which is as trustworthy as the code that runs.

        Errors: TimeLimit, Ended. The process is of no further use then.
        """
        deadline = time.monotonic() + seconds
        try:
            self._socket.settimeout(seconds)
            self._socket.sendall(json.dumps(message).encode() + b"\n")
        except TimeoutError as error:
            raise TimeLimit(f"no answer within {seconds:g} s") from error
        except OSError as error:
            raise Ended(f"the process ended: {error.strerror}") from error
        try:
            return self._receive(deadline)
        except TimeLimit as error:
            raise TimeLimit(f"no answer within {seconds:g} s") from error

    def _receive(self, deadline: float) -> dict[str, Any]:
        received = bytearray()
        while not received.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeLimit
            self._socket.settimeout(left)
            try:
                chunk = self._socket.recv(1 << 20)
            except TimeoutError as error:
                raise TimeLimit from error
            except OSError as error:
                raise Ended(f"the process ended: {error.strerror}") from error
            if not chunk:
                raise Ended("the process ended without an answer")
            received += chunk
            if len(received) > REPLY_BYTES:
                raise Ended("the answer is too long")
        try:
            reply = json.loads(received)
        except (ValueError, RecursionError) as error:
            raise Ended("the answer is not JSON") from error
        if not isinstance(reply, dict):
            raise Ended("the answer is not an object")
        return reply

    def give(self, data: bytes) -> None:
        """Lay `data` on the process's standard input and empty its standard output."""
        for file, content in ((self._input, data), (self._output, b"")):
            file.seek(0)
            file.truncate()
            file.write(content)
            file.flush()
            file.seek(0)

    def printed(self) -> bytes:
        """What stands on the process's standard output."""
        return os.pread(self._output.fileno(), self._limits.file, 0)

    def _kill(self) -> None:
        # the leader is not reaped yet, so the group's number can't belong to anyone else
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def close(self) -> None:
        """Kill the process and all of its group. Safe to call twice."""
        self._on_close(self)
        self._stack.close()

    def end(self) -> None:
        """Kill the process from another thread; its owner then meets `Ended`."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
