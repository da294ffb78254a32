"""The grader's side of a confined process: requests, replies, and a reliable end."""

import contextlib
import json
import os
import select
import socket
import time
from collections.abc import Callable
from typing import Any, Self

from grading.sandbox.forkserver import START_S, ForkServer, ForkServerGone
from grading.sandbox.inside.limits import Limits
from grading.sandbox.inside.process import READ_BYTES
from grading.sandbox.types import ProcessEnded, SandboxError, TimeLimit

REPLY_BYTES = 64 << 20  # of a reply
PARSED_BYTES = 1 << 16  # of a reply that is parsed here, where no time limit applies
_POLL_MS = (1 << 31) - 1  # 24 days: the longest timeout of poll
_END_S = 10.0  # for the supervisor to kill the process and clean up


class Confined:
    """A process that runs the handler of one of our modules; see `grading.sandbox.inside`.

    `missing`: the sandbox's layers that this machine does not provide.

    Raises: ForkServerGone; SandboxError if the process fails to start.
    """

    def __init__(
        self, server: ForkServer, limits: Limits, on_close: Callable[["Confined"], None]
    ) -> None:
        self._on_close = on_close
        self._limits = limits
        self._stack = contextlib.ExitStack()
        try:
            self._start(server)
        except OSError as error:
            self.close()
            raise SandboxError(f"a grading process can't be started: {error}") from error
        except BaseException:
            self.close()
            raise

    def _start(self, server: ForkServer) -> None:
        self._socket, theirs = map(self._stack.enter_context, socket.socketpair())
        self._socket.setblocking(False)
        self._lifeline, their_lifeline = map(self._stack.enter_context, socket.socketpair())
        self._input, self._output = map(self._file, ("input", "output"))
        descriptors = [theirs.fileno(), their_lifeline.fileno(), self._input, self._output]
        try:
            server.fork(self._limits, descriptors)
        finally:  # this process must not keep the other ends open
            theirs.close()
            their_lifeline.close()
        try:
            ready = parse_reply(self._receive(time.monotonic() + START_S))
        except ProcessEnded as error:
            if not server.is_running:
                raise ForkServerGone from error
            raise SandboxError(f"a grading process did not start: {error}") from error
        if "failed" in ready:
            raise SandboxError(f"a grading process failed to start: {ready['failed']}")
        self.missing: list[str] = ready["missing"]

    def _file(self, name: str) -> int:
        """The descriptor of a file in memory, which has no path."""
        file = os.memfd_create(name)
        self._stack.callback(os.close, file)
        return file

    def ask(self, message: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Send a message and wait for the reply, which is as trustworthy as the code that runs.

        Raises: TimeLimit; ProcessEnded, also for a reply longer than PARSED_BYTES. The process
        can't be used afterwards.
        """
        return parse_reply(self.exchange(message, seconds))

    def exchange(self, message: dict[str, Any], seconds: float) -> bytes:
        """Send a message and wait for a line in reply, which is not parsed.

        Raises: TimeLimit; ProcessEnded. The process can't be used afterwards.
        """
        deadline = time.monotonic() + seconds
        try:
            self._send(json.dumps(message).encode() + b"\n", deadline)
            return self._receive(deadline)
        except TimeLimit as error:
            raise TimeLimit(f"no reply within {seconds:g} s") from error

    def _wait(self, event: int, deadline: float) -> None:
        """Wait until the non-blocking socket is ready for `event`. Raises: TimeLimit.

        A socket with a timeout makes more system calls, and each of them hands the interpreter to
        another thread of the grader.
        """
        seconds = deadline - time.monotonic()
        poll = select.poll()
        poll.register(self._socket, event)
        if seconds <= 0 or not poll.poll(min(seconds * 1000, _POLL_MS)):
            raise TimeLimit

    def _send(self, data: bytes, deadline: float) -> None:
        unsent = memoryview(data)
        while unsent:
            try:
                unsent = unsent[self._socket.send(unsent) :]
            except BlockingIOError:
                self._wait(select.POLLOUT, deadline)
            except OSError as error:
                raise ProcessEnded(f"the process ended: {error.strerror}") from error

    def _receive(self, deadline: float) -> bytes:
        line = bytearray()
        while not line.endswith(b"\n"):
            self._wait(select.POLLIN, deadline)
            try:
                chunk = self._socket.recv(READ_BYTES)
            except BlockingIOError:
                continue
            except OSError as error:
                raise ProcessEnded(f"the process ended: {error.strerror}") from error
            if not chunk:
                raise ProcessEnded("the process ended without a reply")
            line += chunk
            if len(line) > REPLY_BYTES:
                raise ProcessEnded(f"the reply is too long, over {REPLY_BYTES} bytes")
        return bytes(line)

    def set_input(self, data: bytes) -> None:
        """Put `data` on the process's standard input and empty its standard output."""
        _empty(self._input)
        _empty(self._output)
        while data:
            data = data[os.pwrite(self._input, data, os.fstat(self._input).st_size) :]

    def clear_output(self) -> None:
        """Empty the process's standard output."""
        if os.fstat(self._output).st_size:
            _empty(self._output)

    def output(self) -> bytes:
        """What the process has written to its standard output."""
        return os.pread(self._output, self._limits.file, 0)

    def close(self) -> None:
        """Kill the process and all its children. Safe to call twice."""
        self._on_close(self)
        with contextlib.suppress(OSError, AttributeError):  # closed already, or never opened
            self._lifeline.settimeout(_END_S)
            self._lifeline.shutdown(socket.SHUT_WR)
            self._lifeline.recv(1)  # ends with the supervisor
        self._stack.close()

    def end(self) -> None:
        """Kill the process from another thread; a call that waits for it raises `ProcessEnded`."""
        with contextlib.suppress(OSError):
            self._lifeline.shutdown(socket.SHUT_WR)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def parse_reply(line: bytes) -> dict[str, Any]:
    """The JSON object in a line of at most PARSED_BYTES. Raises: ProcessEnded."""
    if len(line) > PARSED_BYTES:
        raise ProcessEnded(f"the reply is too long, over {PARSED_BYTES} bytes")
    try:
        reply = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ProcessEnded("the reply is not JSON") from error
    if not isinstance(reply, dict):
        raise ProcessEnded("the reply is not a JSON object")
    return reply


def _empty(file: int) -> None:
    os.ftruncate(file, 0)
    os.lseek(file, 0, os.SEEK_SET)  # the offset is shared with the process
