"""Processes that run what a model wrote: limited, killable, and told nothing they need not know.

A `Sandbox` starts them. A `Confined` process has an empty working directory and next to no
environment; it answers one JSON line with another on a private socket. Its standard input and
output are files of ours, so what it prints is read without its help.

Levels, by what keeps such a process from the rest of the machine:
- full: namespaces of its own (user, network, mounts, processes, IPC, names) and the kernel's layers
- kernel: resource limits, no capabilities, Landlock for files, seccomp for system calls
- bwrap: bubblewrap's namespaces, and those of the kernel's layers that work
- container: the user vouches for a container around all of this; the layers that work are put on
- none: nothing but an end by SIGKILL in time

A level is never believed: before it is used, small attacks are run in it (`canaries`).
"""

import logging
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from data.sandbox import levels
from data.sandbox.host import Host, HostGone
from data.sandbox.process import Confined
from data.sandbox.types import Ended, Limits, SandboxError, TimeLimit

__all__ = ["Confined", "Ended", "Limits", "Sandbox", "SandboxError", "TimeLimit"]

logger = logging.getLogger(__name__)


class Sandbox:
    """Where processes are started from; closed, all of them are killed.

    `level`: one of `levels.LEVELS`, or "auto" for the strongest of full, kernel and bwrap that
    holds. `minimum`: what "auto" may come down to. The attribute `level` is what was found, None
    where that or nothing at or above the minimum holds; nothing can be started then. `reason`: why,
    or why it is not the strongest, in one line for users. `canaries`: which small attacks, tried at
    this level, were "held" and which are "open".

    Errors: ValueError where there is no such level.
    """

    level: str | None
    reason: str
    canaries: Mapping[str, str]

    def __init__(self, level: str = "auto", minimum: str = "kernel") -> None:
        self._live: set[Confined] = set()
        self._hosts: dict[str, Host] = {}
        self._lock = threading.Lock()  # of the processes that live
        self._starting = threading.Lock()  # of the servers, which may take a while
        found = levels.find(level, minimum)
        self.level, self.reason, self.canaries = found.level, found.reason, found.canaries
        if self.level == "none":
            logger.warning(
                "UNCONFINED: programs that a model wrote run with all rights of this user; they can"
                " read, change and delete files, use the network, and end or deceive this run"
            )

    def start(self, module: str, limits: Limits) -> Confined:
        """A process that serves the `handler()` of a module of ours. May be called in any thread.

        Errors: SandboxError where a process can't be started or its imports fail.
        """
        if self.level is None:
            raise SandboxError(f"no sandbox: {self.reason}")
        for _ in range(2):  # a server that has died meanwhile costs nobody a process
            host = self._host(module, self.level)
            try:
                process = Confined(host, limits, self._forget)
            except HostGone:
                self._retire(module, host)
                continue
            with self._lock:
                self._live.add(process)
            return process
        raise SandboxError("a process to grade in can't be started: its server dies")

    def _host(self, module: str, level: str) -> Host:
        with self._starting:
            if module not in self._hosts:
                self._hosts[module] = Host(module, level)
            return self._hosts[module]

    def _retire(self, module: str, host: Host) -> None:
        with self._starting:
            if self._hosts.get(module) is host:
                del self._hosts[module]
                host.close()

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
        with self._lock:
            left = list(self._live)
        for process in left:
            process.close()
        with self._starting:
            while self._hosts:
                self._hosts.popitem()[1].close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
