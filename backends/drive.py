"""Collects an engine's streams into whole answers, and checks each of them."""

import asyncio
import logging
import time
from array import array
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

import numpy as np

from backends.options import vocabulary_size
from backends.types import TOKEN, Backend, Completion, Delta, Request
from errors import EngineError
from ref_dsinfer.files import write_json

log = logging.getLogger(__name__)

CLOSE_S = 20.0  # an engine that takes longer to close is abandoned, and ends with the process
SILENT_S = 30.0  # without a token of any request: warned of then, and each time it has doubled
CHECK_S = 1.0  # between two checks for silence
ANY_ID = 1 << 31  # token ids are 32 bits in LoadGen


@asynccontextmanager
async def running(backend: Backend) -> AsyncIterator[None]:
    """Start an engine, and close it whatever happens.

    The engine's effective settings are written to a `.json` file beside its log.
    Raises: what its `start` raises, OutputError where that file can't be written.
    """
    try:
        await backend.start()
        if log_file := backend.config.log:
            write_json(log_file.with_suffix(".json"), dict(backend.effective()))
        yield
    finally:
        try:
            await asyncio.wait_for(backend.close(), CLOSE_S)
        except TimeoutError:
            log.error("the engine did not close within %g s; going on without it", CLOSE_S)


class Watch:
    """Watches for stalls: an engine may report itself healthy and generate nothing."""

    def __init__(self, limit_s: float) -> None:
        """`limit_s`: seconds without a token of any open request."""
        self._limit_s = limit_s
        # by id: the request, its tokens so far, and when it was opened
        self._open: dict[int, tuple[Request, array, float]] = {}
        self._tokens = 0  # of the requests that are over
        # Since the last token, or the first open request. Counted in steps: the clock of a machine
        # that was suspended jumps.
        self._silent_s = 0.0
        self._warn_s = SILENT_S

    @property
    def tokens(self) -> int:
        """How many have arrived, of all requests."""
        # counted only when asked for: each token costs as little as before
        return self._tokens + sum(len(ids) for _, ids, _ in [*self._open.values()])

    def open(self, request: Request, ids: array) -> None:
        """Watch a request from now on. `ids`: to which its tokens are appended."""
        if not self._open:
            self.beat()
        self._open[request.id] = request, ids, time.monotonic()

    def close(self, request: Request) -> None:
        """The request is over."""
        _, ids, _ = self._open.pop(request.id)
        self._tokens += len(ids)

    def beat(self) -> None:
        """A token has arrived."""
        self._silent_s = 0.0
        self._warn_s = SILENT_S

    async def run(self) -> None:
        """Warn of silence until cancelled. Raises: EngineError once it has lasted too long."""
        while True:
            await asyncio.sleep(CHECK_S)
            self._silent_s += CHECK_S
            silent_s = self._silent_s
            if not self._open or silent_s < min(self._warn_s, self._limit_s):
                continue
            oldest, _, since = next(iter(self._open.values()))
            silence = (
                f"no token of any of {len(self._open)} open requests for {silent_s:.0f} s; the"
                f" oldest, {oldest.name}, has been open for {time.monotonic() - since:.0f} s"
            )
            if silent_s >= self._limit_s:
                raise EngineError(f"{silence}: the engine hangs, or needs a longer --stall-timeout")
            log.warning("%s; the run ends at %g s (--stall-timeout)", silence, self._limit_s)
            self._warn_s *= 2


async def collect(
    backend: Backend,
    request: Request,
    on_first: Callable[[Request, Delta], None] | None = None,
    watch: Watch | None = None,
) -> Completion:
    """Answer one request. `on_first` is called with it and its first delta as that arrives.

    Ids are checked at the first delta and, all of them at once, at the last one.

    Raises: what the engine raises; EngineError where its stream ends too early, or the answer is
    wrong: it has an id that the model does not, or ends neither at a stop id nor after exactly as
    many tokens as the request allows.
    """
    watch = watch or Watch(backend.config.stall_timeout)
    vocabulary = vocabulary_size(backend.config.model) or ANY_ID
    ids = array(TOKEN)
    first_ns = None
    finish = None
    deltas = backend.stream(request)
    watch.open(request, ids)
    try:
        async for delta in deltas:
            watch.beat()
            fault = _length_fault(request, len(ids), delta)
            if finish:
                fault = "the engine went on after the end of the answer"
            try:
                ids.fromlist(list(delta.token_ids))  # twice as fast as extend
            except OverflowError:
                fault = _foreign_id(delta.token_ids, vocabulary)
            if not fault and (first_ns is None or delta.finish):
                fault = _id_fault(request, ids, vocabulary)
            if fault:
                url = backend.endpoint(request)
                server = f"endpoint {url}: " if url else ""
                raise EngineError(f"{server}{request.name}: {fault}")
            if first_ns is None:
                first_ns = delta.at_ns
                if on_first:
                    on_first(request, delta)
            finish, last_ns = delta.finish, delta.at_ns
    finally:
        watch.close(request)
        await deltas.aclose()
    if first_ns is None or finish is None:
        raise EngineError(f"{request.name}: the engine's stream ended before the answer")
    return Completion(request.id, ids, finish, first_ns, last_ns)


def _length_fault(request: Request, before: int, delta: Delta) -> str | None:
    """What is wrong with an answer's length, `before` tokens and `delta`; None if nothing."""
    count, limit = before + len(delta.token_ids), request.max_new_tokens
    if count > limit or (delta.finish == "stop" and count == limit):  # the stop id is a token too
        return f"the engine returned {count + (delta.finish == 'stop')} tokens of {limit} at most"
    if delta.finish == "length" and count < limit:
        return (
            f"the engine cut the answer after {count} of {limit} tokens, not at a stop id: raise"
            " its own limit (a generation config's max_new_tokens, or its context length)"
        )
    return None


def _id_fault(request: Request, ids: array, vocabulary: int) -> str | None:
    """What is wrong with an answer's ids so far; None if nothing."""
    values = np.frombuffer(ids, np.int32)
    if values.view(np.uint32).max(initial=0) >= vocabulary:  # a negative id is above all others
        return _foreign_id(ids, vocabulary)
    if any((values == stop_id).any() for stop_id in request.stop_ids):
        return "the engine went on after a stop id of the request"
    return None


def _foreign_id(ids: Iterable[int], vocabulary: int) -> str:
    """Names the first id that the model does not have."""
    id_ = next(id_ for id_ in ids if not 0 <= id_ < vocabulary)
    return f"the engine sampled id {id_}, but the model has ids 0 to {vocabulary - 1}"


async def run_all(
    backend: Backend,
    requests: Iterable[Request],
    on_done: Callable[[Completion], None] | None = None,
    on_first: Callable[[Request, Delta], None] | None = None,
    watch: Watch | None = None,
) -> list[Completion]:
    """Answer all requests at once; completions are returned in the requests' order.

    `on_done` is called with each completion as it arrives, `on_first` as in `collect`. The first
    failure, of the engine or of `on_done`, or a stall, cancels all other requests and is raised.
    """
    watch = watch or Watch(backend.config.stall_timeout)

    async def answer(request: Request) -> Completion:
        completion = await collect(backend, request, on_first, watch)
        if on_done:
            on_done(completion)
        return completion

    tasks = [asyncio.create_task(answer(request)) for request in requests]
    watching = asyncio.create_task(watch.run())
    answers = asyncio.gather(*tasks)
    try:
        both: set[asyncio.Future] = {answers, watching}
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not answers.done():
            await watching
        return await answers
    finally:
        await cancel([*tasks, answers, watching])


async def cancel(tasks: Iterable[asyncio.Future]) -> None:
    """Cancel tasks and wait until they have ended; exceptions that they raise are dropped."""
    tasks = list(tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
