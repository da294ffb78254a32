"""Records a run while it goes on, for its timeline and for the live view of it."""

import asyncio
import itertools
import logging
import time
from array import array
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import entrypoint
from backends.types import FINISHES, Backend, Completion, Delta, Request, Stats
from data.timeline import Metadata, write_timeline
from errors import OutputError

if TYPE_CHECKING:
    import numpy as np

log = logging.getLogger(__name__)

TIMELINE = "timeline.parquet"
EVERY_S = 1.0  # a row of the timeline
UNKNOWN = -1
_ROW = 9  # numbers in a row of `Recorder._rows`


class Second(NamedTuple):
    """A row of the timeline, about a second long."""

    start_ns: int  # time.monotonic_ns()
    end_ns: int
    tokens: int  # received in it
    stats: Stats  # at its start


class Recorder:
    """Records the requests of a run while it is open, and then writes its timeline.

    It does so however the run ends: what has not finished has no end there. The engine is asked for
    its stats once a second; one that does not answer within that second has none for it.

    Raises: OutputError if the timeline can't be written.
    """

    def __init__(
        self, path: Path, backend: Backend, scenario: str | None, mode: str, name: str
    ) -> None:
        """`scenario`, `mode`: as in `Metadata`; `name`: the backend's."""
        from backends.drive import Watch  # needs numpy, and this module is imported for --help

        self.path = path
        self.watch = Watch(backend.config.stall_timeout)  # for whoever collects the answers
        self.done = 0  # requests
        self.seconds: list[Second] = []
        self.stats = Stats()  # the newest
        self.ttft_ns = array("q")  # of each request that has a token, if these come singly
        self.tpot_ns = array("d")  # of each finished request with two tokens or more, likewise
        self._backend = backend
        self._about = scenario, mode, name
        self._whole = backend.config.coalesce
        self._open: dict[int, tuple[Request, int]] = {}  # by id; arrival in ns
        self._started: dict[int, tuple[int, int]] = {}  # first token in ns, endpoint's number
        self._endpoints: dict[str | None, int] = {None: 0}  # their numbers
        # _ROW numbers a request, in the order of finishing; an array takes a fifth of the memory
        # of tuples
        self._rows = array("q")
        self._preempted: int | None = None  # times, before the run
        self._end_ns: int | None = None

    @property
    def tokens(self) -> int:
        """How many have arrived."""
        return self.watch.tokens

    @property
    def open(self) -> int:
        """Requests that have arrived, and have not finished."""
        return len(self._open)

    @property
    def elapsed_s(self) -> float:
        """Seconds from the start to now, or to the end."""
        return ((self._end_ns or time.monotonic_ns()) - self.start_ns) / 1e9

    @property
    def ended(self) -> bool:
        """Whether no more requests come."""
        return self._end_ns is not None

    def arrive(self, request: Request, at_ns: int) -> None:
        """A request has arrived. `at_ns`: time.monotonic_ns()."""
        self._open[request.id] = request, at_ns

    def start(self, request: Request, delta: Delta) -> None:
        """A request has its first tokens."""
        endpoint = self._backend.endpoint(request)
        number = self._endpoints.setdefault(endpoint, len(self._endpoints))
        self._started[request.id] = delta.at_ns, number
        if not self._whole:
            self.ttft_ns.append(delta.at_ns - self._open[request.id][1])

    def finish(self, completion: Completion) -> None:
        """A request is answered."""
        id_, ids, finish, first_ns, last_ns = completion
        request, arrival_ns = self._open.pop(id_)
        _, endpoint = self._started.pop(id_)
        row, tokens = request.row, len(ids)
        assert row is not None  # every request of a run has one
        # in one call, which another thread finds done or not done
        self._rows.extend(
            (
                *(id_, row, arrival_ns, first_ns, last_ns),
                *(len(request.prompt_ids), tokens, FINISHES.index(finish), endpoint),
            )
        )
        if tokens > 1 and not self._whole:
            self.tpot_ns.append((last_ns - first_ns) / (tokens - 1))
        self.done += 1

    async def __aenter__(self) -> Self:
        self.start_ns, self._unix_s = time.monotonic_ns(), time.time()
        self._second_ns, self._second_tokens = self.start_ns, self.tokens
        self._now = Stats()
        entrypoint.before_failing.append(self._fail)
        self._polling = asyncio.create_task(self._poll())
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        entrypoint.before_failing.remove(self._fail)
        self._polling.cancel()
        await asyncio.wait([self._polling])
        self._end_second()
        self._end_ns, self.stats = self._second_ns, Stats()
        try:
            self._write()
        except OutputError as failure:
            if error is None:
                raise
            log.error("%s", failure)  # what ended the run came first
        if error is None and not self._polling.cancelled():
            self._polling.result()  # raises what ended it

    async def _poll(self) -> None:
        while True:
            end_s = self._second_ns / 1e9 + EVERY_S
            with suppress(TimeoutError):
                async with asyncio.timeout(end_s - time.monotonic()):
                    self._now = await self._stats()
            self.stats = self._now
            await asyncio.sleep(end_s - time.monotonic())
            self._end_second()

    async def _stats(self) -> Stats:
        """The engine's, with preemptions counted from the run's start."""
        stats = await self._backend.stats()
        if stats.preemptions is None:
            return stats
        if self._preempted is None:
            self._preempted = stats.preemptions
        return replace(stats, preemptions=stats.preemptions - self._preempted)

    def _end_second(self) -> None:
        now_ns, tokens = time.monotonic_ns(), self.tokens
        new = tokens - self._second_tokens
        self.seconds.append(Second(self._second_ns, now_ns, new, self._now))
        self._second_ns, self._second_tokens, self._now = now_ns, tokens, Stats()

    def _fail(self, reason: str) -> None:
        """What is there, written in whatever thread ends the process."""
        self._end_second()
        try:
            self._write()
        except OutputError as error:
            log.error("%s", error)

    def _write(self) -> None:
        write_timeline(
            self.path, self._requests(), self._seconds(), Metadata(*self._about, self._unix_s)
        )

    def _since_start(self, ns: "np.ndarray") -> "np.ndarray":
        """Seconds since the start; NaN where the time is not known."""
        import numpy as np

        return np.where(ns == UNKNOWN, np.nan, (ns - self.start_ns) / 1e9)

    def _requests(self) -> dict[str, "Sequence[Any] | np.ndarray"]:
        import numpy as np

        unfinished = [
            (
                *(request.id, request.row, arrival_ns, first_ns, UNKNOWN),
                *(len(request.prompt_ids), UNKNOWN, UNKNOWN, endpoint),
            )
            for request, arrival_ns in [*self._open.values()]
            for first_ns, endpoint in [self._started.get(request.id, (UNKNOWN, 0))]
        ]
        others = np.array([*itertools.chain(*unfinished)], np.int64)
        rows = np.concatenate([np.array(self._rows), others]).reshape(-1, _ROW)
        ids, samples, arrivals, firsts, ends, prompts, answers, finishes, servers = rows.T
        if self._whole:
            firsts = np.full_like(firsts, UNKNOWN)
        return {
            "request_id": ids,
            "sample_index": samples,
            "arrival_s": self._since_start(arrivals),
            "first_token_s": self._since_start(firsts),
            "finish_s": self._since_start(ends),
            "prompt_tokens": prompts,
            "answer_tokens": np.where(answers == UNKNOWN, np.nan, answers),
            "finish": np.array([*FINISHES, None], object)[finishes],  # the last where unknown
            "endpoint": np.array([*self._endpoints], object)[servers],
        }

    def _seconds(self) -> dict[str, Sequence[Any]]:
        seconds = self.seconds[:]
        stats = [second.stats for second in seconds]
        return {
            "arrival_s": [(second.start_ns - self.start_ns) / 1e9 for second in seconds],
            "finish_s": [(second.end_ns - self.start_ns) / 1e9 for second in seconds],
            "tokens": [second.tokens for second in seconds],
            "running": [one.running for one in stats],
            "waiting": [one.waiting for one in stats],
            "cache_use": [one.cache_use for one in stats],
            "preemptions": [one.preemptions for one in stats],
        }
