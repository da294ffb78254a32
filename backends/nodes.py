"""The hosts that an engine spans by its own options: each keeps watch over the others.

An engine's processes wait for ever for those of a host that is gone, and those of the other hosts
do not end with the first one's. So the run on the first host and the `--join` on each of the others
meet, compare what they were started with, and end when one of them does.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from backends.children import Children
from backends.types import EngineConfig
from errors import EngineError, LaunchError, UsageError, UserError
from ref_dsinfer import members
from ref_dsinfer.parallel import RankInfo, meet
from ref_dsinfer.presence import Presence

LOOK_S = 0.3  # between checks of a host's own part
CONNECT_S = timedelta(seconds=5)  # for the first host to answer, before another try
READ_S = 3.0  # for the other hosts to see which does not fit
# In an engine's log where a connection to another host broke.
BY_ANOTHER = ("by peer", "Broken pipe", "remote process exited")


@dataclass(frozen=True)
class Span:
    """The hosts that an engine's options name."""

    rank: int  # of this host
    count: int
    leader: str  # name or address of the first host
    port: int  # of the engine on it; the hosts meet at the one below


class Nodes:
    """This host among those that an engine spans. `span` None: there are no others.

    Raises: UsageError where --join does not fit the engine's options.
    """

    def __init__(self, config: EngineConfig, span: Span | None) -> None:
        if config.join and not span:
            raise UsageError("--join: the engine's options (--engine-arg) name no other host")
        if span and span.rank and not config.join:
            raise UsageError(f"the engine's options make this host number {span.rank}: add --join")
        if span and config.join and not span.rank:
            raise UsageError(
                "--join: the engine's options make this the first host; leave --join out, or name"
                " another by --engine-arg node_rank=N (vLLM's data_parallel_start_rank=N)"
            )
        self._config, self._span = config, span
        self._store: dist.Store | None = None  # at the first host, for the others
        self._presence: Presence | None = None
        self._failed = False

    @property
    def log(self) -> Path | None:
        """Where this host's part of the engine writes to; hosts may share the folder."""
        log = self._config.log
        if log and self._span and self._span.rank:
            return log.with_name(f"{log.stem}.node{self._span.rank}{log.suffix}")
        return log

    async def meet(self, settings: Mapping[str, object]) -> str:
        """Wait for all hosts. Returns this one's address on their network; "" without others.

        `settings`: what must be the same on each.
        Raises: LaunchError naming a host that is missing or has other settings.
        """
        if not self._span:
            return ""
        met: Future[str] = Future()

        def wait() -> None:
            try:
                met.set_result(self._meet(settings))
            except (UserError, OSError, RuntimeError) as error:  # torch's are RuntimeErrors
                met.set_exception(error)

        # torch's store can't be interrupted, and must not keep the process alive
        threading.Thread(target=wait, daemon=True).start()
        return await asyncio.wrap_future(met)

    async def follow(self, children: Children, engine: str, ended: Callable[[], bool]) -> None:
        """Wait until the first host's run is done. `ended`: whether this host's part has ended.

        Raises: EngineError where it ends before that.
        """
        assert self._presence
        while not self._presence.left:
            if ended():
                what = f"{engine} has died on this host"
                raise await self.failure(children, what)
            await asyncio.sleep(LOOK_S)
        self.leave()

    async def failure(self, children: Children, what: str) -> EngineError:
        """The error to raise where the engine has failed here. It is the loss of another host if it
        follows from that."""
        self._failed = True
        loss = None
        if self._presence and any(map(children.log_contains, BY_ANOTHER)):
            loss = await asyncio.to_thread(self._presence.loss)
        return loss or children.failure(what)

    def leave(self) -> None:
        """From now on this host's part may end, unless it has failed: that is for the others to
        hear. Safe to call twice."""
        if self._presence and not self._failed:
            self._presence.leave()
            self._presence = None

    def _meet(self, settings: Mapping[str, object]) -> str:
        assert self._span
        span, limit = self._span, timedelta(seconds=self._config.start_timeout)
        same = members.settings(Path(self._config.model), settings)
        info = RankInfo(span.rank, span.count)
        try:
            self._store, self._presence, address = meet(self._open, info, span.leader, same, limit)
        except LaunchError:
            if span.rank == 0:
                time.sleep(READ_S)  # the others read from the store here
            raise
        return address

    def _open(self) -> dist.Store:
        assert self._span
        span = self._span
        place = span.leader, span.port - 1, span.count, span.rank == 0
        until = time.monotonic() + self._config.start_timeout
        while True:
            try:
                return dist.TCPStore(*place, timeout=CONNECT_S, wait_for_workers=False)
            except dist.DistNetworkError as error:
                if span.rank == 0:
                    raise LaunchError(f"port {span.port - 1}: {error}") from error
                if time.monotonic() > until:
                    raise
