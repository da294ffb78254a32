"""From one engine's streams to whole answers, every one of them checked."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager

from backends.options import vocabulary_size
from backends.types import Backend, Completion, Delta, Request
from errors import EngineError
from ref_dsinfer.files import write_json

log = logging.getLogger(__name__)

CLOSE_S = 20.0  # an engine that takes longer to close is left to the end of the process
SILENT_S = 30.0  # without a token of any request: said then, and at twice that, and so on
LOOK_S = 1.0  # between two looks whether tokens come
ANY_ID = 1 << 31  # token ids are 32 bits in LoadGen


@asynccontextmanager
async def running(backend: Backend) -> AsyncIterator[None]:
    """Start an engine, and close it whatever happens.

    Beside the engine's log is then a `.json` of what it runs with.

    Raises: what its `start` raises; OutputError where that file can't be written.
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
            log.error("the engine has not closed within %g s; going on without it", CLOSE_S)


class Watch:
    """Whether tokens come at all: an engine may call itself healthy and generate nothing."""

    def __init__(self, limit_s: float) -> None:
        """`limit_s`: without a token of any open request."""
        self._limit_s = limit_s
        self._open: dict[int, tuple[Request, float]] = {}  # with when it was opened
        # Since a token came, or the first request after none; in steps, since a halted machine's
        # clock leaps.
        self._silent_s = 0.0
        self._warn_s = SILENT_S

    @contextmanager
    def over(self, request: Request) -> Iterator[None]:
        """Watch over a request while it is open."""
        if not self._open:
            self.beat()
        self._open[request.id] = request, time.monotonic()
        try:
            yield
        finally:
            del self._open[request.id]

    def beat(self) -> None:
        """A token has come."""
        self._silent_s = 0.0
        self._warn_s = SILENT_S

    async def run(self) -> None:
        """Warn of silence, for ever. Raises: EngineError once it has lasted too long."""
        while True:
            await asyncio.sleep(LOOK_S)
            self._silent_s += LOOK_S
            silent_s = self._silent_s
            if not self._open or silent_s < min(self._warn_s, self._limit_s):
                continue
            oldest, since = next(iter(self._open.values()))
            told = (
                f"no token of any of {len(self._open)} open requests for {silent_s:.0f} s; the"
                f" oldest, {oldest.name}, waits for {time.monotonic() - since:.0f} s"
            )
            if silent_s >= self._limit_s:
                raise EngineError(f"{told}: the engine hangs, or needs a longer --stall-timeout")
            log.warning("%s; the run ends at %g s (--stall-timeout)", told, self._limit_s)
            self._warn_s *= 2


async def collect(
    backend: Backend,
    request: Request,
    on_first: Callable[[Delta], None] | None = None,
    watch: Watch | None = None,
) -> Completion:
    """Answer one request. `on_first` is called with its first delta, as soon as that is there.

    Raises: what the engine raises; EngineError where its stream ends before the answer does, or the
    answer is not what was asked for: ids that the model has, and an end at a stop id or after just
    as many tokens as were asked for.
    """
    watch = watch or Watch(backend.config.stall_timeout)
    vocabulary = vocabulary_size(backend.config.model) or ANY_ID
    ids: list[int] = []
    first_ns = None
    finish = None
    async with aclosing(backend.stream(request)) as deltas:  # type: ignore[type-var]
        with watch.over(request):
            async for delta in deltas:
                watch.beat()
                ids += delta.token_ids
                if wrong := _wrong(request, ids, delta, vocabulary):
                    raise EngineError(f"{backend.place(request)}{request.name}: {wrong}")
                if first_ns is None:
                    first_ns = delta.at_ns
                    if on_first:
                        on_first(delta)
                finish, last_ns = delta.finish, delta.at_ns
    if first_ns is None or finish is None:
        raise EngineError(f"{request.name}: the engine's stream ended before the answer")
    return Completion(request.id, tuple(ids), finish, first_ns, last_ns)


def _wrong(request: Request, ids: list[int], delta: Delta, vocabulary: int) -> str | None:
    """What is wrong with an answer of `ids`, of which `delta` came last."""
    count, limit = len(ids), request.max_new_tokens
    for id_ in delta.token_ids:
        if not 0 <= id_ < vocabulary:
            return f"the engine has sampled id {id_}, and the model has ids 0 to {vocabulary - 1}"
    if count > limit or (delta.finish == "stop" and count == limit):  # the stop id is a token too
        return f"the engine has given {count + (delta.finish == 'stop')} tokens of {limit}"
    if delta.finish and not request.stop_ids.isdisjoint(ids):
        return "the engine has gone on after a stop id of the request"
    if delta.finish == "length" and count < limit:
        return (
            f"the engine has cut the answer after {count} of {limit} tokens, at no stop id: it has"
            " a limit of its own (a generation config's max_new_tokens, or too short a context),"
            " which has to be lifted"
        )
    return None


async def run_all(
    backend: Backend,
    requests: Iterable[Request],
    on_done: Callable[[Completion], None] | None = None,
) -> list[Completion]:
    """Answer every request, all of them in flight at once; completions come in their order.

    `on_done` is called with each completion when it is there. The first failure, of the engine or
    of `on_done`, or a silence that is too long, ends all other requests and is raised.
    """
    watch = Watch(backend.config.stall_timeout)

    async def answer(request: Request) -> Completion:
        completion = await collect(backend, request, watch=watch)
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
    """Cancel tasks and wait until they have ended; what they raise on the way is not kept."""
    tasks = list(tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
