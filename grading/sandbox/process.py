"""The grader's side of a confined process: questions, answers, and a sure end."""

import contextlib
import json
import os
import select
import socket
import time
from collections.abc import Callable
from typing import Any, Self

from grading.sandbox.host import START_S, Host, HostGone
from grading.sandbox.inside.limits import Limits
from grading.sandbox.inside.process import READ_BYTES
from grading.sandbox.types import Ended, SandboxError, TimeLimit

REPLY_BYTES = 64 << 20  # of an answer
PARSED_BYTES = 1 << 16  # of one that is parsed on this side, where nothing limits the time it takes
_POLL_MS = (1 << 31) - 1  # 24 days: as long as the system waits
_END_S = 10.0  # for a supervisor to kill and clean up


class Confined:
    """A process that serves the handler of a module of ours; see `grading.sandbox.inside`.

    `missing`: layers of the sandbox that this machine can't give it.

    Raises: HostGone; SandboxError if the process fails before it can serve.
    """

    def __init__(self, host: Host, limits: Limits, on_close: Callable[["Confined"], None]) -> None:
        self._on_close = on_close
        self._limits = limits
        self._stack = contextlib.ExitStack()
        try:
            self._start(host)
        except OSError as error:
            self.close()
            raise SandboxError(f"a process to grade in can't be started: {error}") from error
        except BaseException:
            self.close()
            raise

    def _start(self, host: Host) -> None:
        self._socket, theirs = map(self._stack.enter_context, socket.socketpair())
        self._socket.setblocking(False)
        self._lifeline, held = map(self._stack.enter_context, socket.socketpair())
        self._input, self._output = map(self._file, ("input", "output"))
        ends = [theirs.fileno(), held.fileno(), self._input, self._output]
        try:
            host.fork(self._limits, ends)
        finally:  # whoever has the other ends, it is not this process
            theirs.close()
            held.close()
        try:
            ready = parsed(self._receive(time.monotonic() + START_S))
        except Ended as error:
            if not host.runs:
                raise HostGone from error
            raise SandboxError(f"a process to grade in did not start: {error}") from error
        if "failed" in ready:
            raise SandboxError(f"a process to grade in failed to start: {ready['failed']}")
        self.missing: list[str] = ready["missing"]

    def _file(self, name: str) -> int:
        """A descriptor of a file in memory, which no path leads to."""
        file = os.memfd_create(name)
        self._stack.callback(os.close, file)
        return file

    def ask(self, message: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Send a message and wait for the answer, which is as trustworthy as the code that runs.

        A long answer is refused. Raises: TimeLimit, Ended. The process is of no further use then.
        """
        return parsed(self.exchange(message, seconds))

    def exchange(self, message: dict[str, Any], seconds: float) -> bytes:
        """Send a message and wait for the line that answers it, whatever that may be.

        Raises: as of `ask`.
        """
        deadline = time.monotonic() + seconds
        try:
            self._send(json.dumps(message).encode() + b"\n", deadline)
            return self._receive(deadline)
        except TimeLimit as error:
            raise TimeLimit(f"no answer within {seconds:g} s") from error

    def _wait(self, event: int, deadline: float) -> None:
        """Until the socket can be read from, or written to. It does not block by itself.

        A socket with a time limit of its own asks the system more often, and each time hands the
        interpreter to another thread of the grader. Raises: TimeLimit.
        """
        left = deadline - time.monotonic()
        waiting = select.poll()
        waiting.register(self._socket, event)
        if left <= 0 or not waiting.poll(min(left * 1000, _POLL_MS)):
            raise TimeLimit

    def _send(self, data: bytes, deadline: float) -> None:
        left = memoryview(data)
        while left:
            try:
                left = left[self._socket.send(left) :]
            except BlockingIOError:
                self._wait(select.POLLOUT, deadline)
            except OSError as error:
                raise Ended(f"the process ended: {error.strerror}") from error

    def _receive(self, deadline: float) -> bytes:
        received = bytearray()
        while not received.endswith(b"\n"):
            self._wait(select.POLLIN, deadline)
            try:
                chunk = self._socket.recv(READ_BYTES)
            except BlockingIOError:
                continue
            except OSError as error:
                raise Ended(f"the process ended: {error.strerror}") from error
            if not chunk:
                raise Ended("the process ended without an answer")
            received += chunk
            if len(received) > REPLY_BYTES:
                raise Ended("the answer is too long")
        return bytes(received)

    def give(self, data: bytes) -> None:
        """Lay `data` on the process's standard input and empty its standard output."""
        _empty(self._input)
        _empty(self._output)
        while data:
            data = data[os.pwrite(self._input, data, os.fstat(self._input).st_size) :]

    def forget_printed(self) -> None:
        """Empty the process's standard output, should anything stand there."""
        if os.fstat(self._output).st_size:
            _empty(self._output)

    def printed(self) -> bytes:
        """What stands on the process's standard output."""
        return os.pread(self._output, self._limits.file, 0)

    def close(self) -> None:
        """Kill the process and all it has started. Safe to call twice."""
        self._on_close(self)
        with contextlib.suppress(OSError, AttributeError):  # closed before, or never opened
            self._lifeline.settimeout(_END_S)
            self._lifeline.shutdown(socket.SHUT_WR)
            self._lifeline.recv(1)  # ends with the supervisor
        self._stack.close()

    def end(self) -> None:
        """Kill the process from another thread; its owner then meets `Ended`."""
        with contextlib.suppress(OSError):
            self._lifeline.shutdown(socket.SHUT_WR)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def parsed(line: bytes) -> dict[str, Any]:
    """The object that a short line holds. Raises: Ended."""
    if len(line) > PARSED_BYTES:
        raise Ended("the answer is too long")
    try:
        reply = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise Ended("the answer is not JSON") from error
    if not isinstance(reply, dict):
        raise Ended("the answer is not an object")
    return reply


def _empty(file: int) -> None:
    os.ftruncate(file, 0)
    os.lseek(file, 0, os.SEEK_SET)  # shared with the process, which may have moved it
