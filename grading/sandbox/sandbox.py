"""The sandbox: starts confined processes at a level.

What isolates a process from the rest of the machine at each level:
- full: its own namespaces (user, network, mount, PID, IPC, UTS) and all layers of `kernel`
- kernel: resource limits, no capabilities, Landlock for files, seccomp for system calls
- bwrap: bubblewrap's namespaces, and those layers of `kernel` that work
- container: a container that the user guarantees, and those layers of `kernel` that work
- none: nothing; a process is only killed when its time is over

No level is taken on trust: before it is used, small attacks are run in it (`canaries`).
"""

import contextlib
import logging
import threading
from collections.abc import Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Self

from grading.sandbox import levels
from grading.sandbox.forkserver import ForkServer, ForkServerGone
from grading.sandbox.inside.limits import Limits
from grading.sandbox.process import Confined
from grading.sandbox.types import SandboxError

logger = logging.getLogger(__name__)


class Sandbox:
    """Starts confined processes, and kills all of them when it is closed.

    `level`: one of `levels.LEVELS`, or "auto" for the strongest of full, kernel and bwrap that
    holds. `minimum`: the weakest level that "auto" may choose.

    It starts up in a thread of its own; whoever uses it first waits until it is ready.

    Raises: ValueError for an unknown level.
    """

    def __init__(self, level: str = "auto", minimum: str = "kernel") -> None:
        levels.require_known(level, minimum)
        if level == "none":
            logger.warning(
                "NO SANDBOX: programs that a model wrote run with all rights of this user; they can"
                " read, change and delete files, use the network, and kill this run or falsify its"
                " grades"
            )
        self._live: set[Confined] = set()
        self._servers: dict[str, Future[ForkServer]] = {}  # by module
        self._lock = threading.Lock()
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="sandbox")
        self._probe = self._starter.submit(levels.find, level, minimum)

    @property
    def level(self) -> str | None:
        """The level in use; None if no level holds: no process can be started then."""
        return self._probe.result().level

    @property
    def reason(self) -> str:
        """Why no level holds, or why not the strongest one, in one line for users."""
        return self._probe.result().reason

    @property
    def canaries(self) -> Mapping[str, str]:
        """The outcome of each small attack at this level: "held" or "open"."""
        return self._probe.result().canaries

    def prepare(self, module: str) -> None:
        """Start the fork server of a module ahead of its first process."""
        self._server(module)

    def start(self, module: str, limits: Limits) -> Confined:
        """A process that runs the `handler()` of one of our modules. Thread-safe.

        Raises: SandboxError if the process can't be started or its imports fail.
        """
        for _ in range(2):  # a fork server that has died since is replaced once
            server = self._server(module)
            try:
                process = Confined(server.result(), limits, self._forget)
            except ForkServerGone:
                self._retire(module, server)
                continue
            with self._lock:
                self._live.add(process)
            return process
        raise SandboxError("a grading process can't be started: its fork server dies")

    def _server(self, module: str) -> Future[ForkServer]:
        with self._lock:
            if module not in self._servers or _has_failed(self._servers[module]):
                self._servers[module] = self._starter.submit(self._serve, module)
            return self._servers[module]

    def _serve(self, module: str) -> ForkServer:
        """Raises: SandboxError."""
        if self.level is None:
            raise SandboxError(f"no sandbox level holds: {self.reason}")
        return ForkServer(module, self.level)

    def _retire(self, module: str, server: Future[ForkServer]) -> None:
        with self._lock:
            if self._servers.get(module) is server:
                del self._servers[module]
                server.result().close()

    def _forget(self, process: Confined) -> None:
        with self._lock:
            self._live.discard(process)

    def end_all(self) -> None:
        """Kill every process, as the run has been interrupted."""
        with self._lock:
            for process in self._live:
                process.end()

    def close(self) -> None:
        """Kill all processes and fork servers."""
        self._starter.shutdown(cancel_futures=True)
        with self._lock:
            processes = list(self._live)
            servers = [self._servers.popitem()[1] for _ in range(len(self._servers))]
        for process in processes:
            process.close()
        for server in servers:
            with contextlib.suppress(SandboxError, CancelledError):
                server.result().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _has_failed(server: Future[ForkServer]) -> bool:
    return server.done() and server.exception() is not None
