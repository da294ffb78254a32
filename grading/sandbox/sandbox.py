"""Where confined processes are started from, at a level.

Levels, by what keeps such a process from the rest of the machine:
- full: namespaces of its own (user, network, mounts, processes, IPC, names) and the kernel's layers
- kernel: resource limits, no capabilities, Landlock for files, seccomp for system calls
- bwrap: bubblewrap's namespaces, and those of the kernel's layers that work
- container: the user vouches for a container around all of this; the layers that work are put on
- none: nothing but an end by SIGKILL in time

A level is never believed: before it is used, small attacks are run in it (`canaries`).
"""

import contextlib
import logging
import threading
from collections.abc import Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Self

from grading.sandbox import levels
from grading.sandbox.host import Host, HostGone
from grading.sandbox.inside.limits import Limits
from grading.sandbox.process import Confined
from grading.sandbox.types import SandboxError

logger = logging.getLogger(__name__)


class Sandbox:
    """Where processes are started from; closed, all of them are killed.

    `level`: one of `levels.LEVELS`, or "auto" for the strongest of full, kernel and bwrap that
    holds. `minimum`: what "auto" may come down to.

    It is made ready beside whatever its owner does; who asks for anything of it waits.

    Raises: ValueError if there is no such level.
    """

    def __init__(self, level: str = "auto", minimum: str = "kernel") -> None:
        levels.require_known(level, minimum)
        if level == "none":
            logger.warning(
                "UNCONFINED: programs that a model wrote run with all rights of this user; they can"
                " read, change and delete files, use the network, and end or deceive this run"
            )
        self._live: set[Confined] = set()
        self._hosts: dict[str, Future[Host]] = {}
        self._lock = threading.Lock()
        self._starting = ThreadPoolExecutor(1, thread_name_prefix="sandbox")
        self._found = self._starting.submit(levels.find, level, minimum)

    @property
    def level(self) -> str | None:
        """The level that was found; None where none holds: nothing can be started then."""
        return self._found.result().level

    @property
    def reason(self) -> str:
        """Why nothing holds, or why it is not the strongest, in one line for users."""
        return self._found.result().reason

    @property
    def canaries(self) -> Mapping[str, str]:
        """Which small attacks, tried at this level, were "held" and which are "open"."""
        return self._found.result().canaries

    def prepare(self, module: str) -> None:
        """Have what serves a module made ready, so that its first `start` need not wait."""
        self._host(module)

    def start(self, module: str, limits: Limits) -> Confined:
        """A process that serves the `handler()` of a module of ours. May be called in any thread.

        Raises: SandboxError if a process can't be started or its imports fail.
        """
        for _ in range(2):  # a server that has died meanwhile costs nobody a process
            host = self._host(module)
            try:
                process = Confined(host.result(), limits, self._forget)
            except HostGone:
                self._retire(module, host)
                continue
            with self._lock:
                self._live.add(process)
            return process
        raise SandboxError("a process to grade in can't be started: its server dies")

    def _host(self, module: str) -> Future[Host]:
        with self._lock:
            if module not in self._hosts or _has_failed(self._hosts[module]):
                self._hosts[module] = self._starting.submit(self._serve, module)
            return self._hosts[module]

    def _serve(self, module: str) -> Host:
        """Raises: SandboxError."""
        if self.level is None:
            raise SandboxError(f"no sandbox: {self.reason}")
        return Host(module, self.level)

    def _retire(self, module: str, host: Future[Host]) -> None:
        with self._lock:
            if self._hosts.get(module) is host:
                del self._hosts[module]
                host.result().close()

    def _forget(self, process: Confined) -> None:
        with self._lock:
            self._live.discard(process)

    def end_all(self) -> None:
        """Kill every process there is: the run has been interrupted."""
        with self._lock:
            for process in self._live:
                process.end()

    def close(self) -> None:
        """Kill what is left."""
        self._starting.shutdown(cancel_futures=True)
        with self._lock:
            left = list(self._live)
            hosts = [self._hosts.popitem()[1] for _ in range(len(self._hosts))]
        for process in left:
            process.close()
        for host in hosts:
            with contextlib.suppress(SandboxError, CancelledError):
                host.result().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _has_failed(host: Future[Host]) -> bool:
    return host.done() and host.exception() is not None
