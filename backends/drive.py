"""From one engine's streams to whole answers."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

from backends.types import Backend, Completion, Delta, Request
from ref_dsinfer.errors import EngineError, OutputError

log = logging.getLogger(__name__)

CLOSE_S = 20.0  # an engine that takes longer to close is left to the end of the process


@asynccontextmanager
async def running(backend: Backend) -> AsyncIterator[None]:
    """Start an engine, and close it whatever happens.

    Beside the engine's log is then a `.json` of what it runs with.

    Errors: what its `start` raises; OutputError where that file can't be written.
    """
    try:
        await backend.start()
        if log_file := backend.config.log:
            path = log_file.with_suffix(".json")
            told = json.dumps(dict(backend.effective()), indent=2)
            try:
                path.write_text(told + "\n")
            except OSError as error:
                raise OutputError(f"{path}: can't be written: {error.strerror}") from error
        yield
    finally:
        try:
            await asyncio.wait_for(backend.close(), CLOSE_S)
        except TimeoutError:
            log.error("the engine has not closed within %g s; going on without it", CLOSE_S)


async def collect(
    backend: Backend, request: Request, on_first: Callable[[Delta], None] | None = None
) -> Completion:
    """Answer one request. `on_first` is called with its first delta, as soon as that is there.

    Errors: what the engine raises; EngineError where its stream ends before the answer does.
    """
    ids: list[int] = []
    first_ns = None
    finish = None
    async for delta in backend.stream(request):
        if first_ns is None:
            first_ns = delta.at_ns
            if on_first:
                on_first(delta)
        ids += delta.token_ids
        finish, last_ns = delta.finish, delta.at_ns
    if first_ns is None or finish is None:
        raise EngineError(f"request {request.id}: the engine's stream ended before the answer")
    return Completion(request.id, tuple(ids), finish, first_ns, last_ns)


async def run_all(
    backend: Backend,
    requests: Iterable[Request],
    on_done: Callable[[Completion], None] | None = None,
) -> list[Completion]:
    """Answer every request, all of them in flight at once; completions come in their order.

    `on_done` is called with each completion when it is there. The first failure, of the engine or
    of `on_done`, ends all other requests and is raised.
    """

    async def answer(request: Request) -> Completion:
        completion = await collect(backend, request)
        if on_done:
            on_done(completion)
        return completion

    tasks = [asyncio.create_task(answer(request)) for request in requests]
    try:
        return await asyncio.gather(*tasks)
    finally:
        await cancel(tasks)


async def cancel(tasks: Iterable[asyncio.Task]) -> None:
    """Cancel tasks and wait until they have ended; what they raise on the way is not kept."""
    tasks = list(tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
