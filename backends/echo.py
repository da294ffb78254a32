"""An engine without a model: the answer is the prompt. For tests, and to measure everything else.

Its options (`--engine-arg`), all numbers:

- `first_token_ms`, `token_ms`: time to the first token and between tokens; with neither, an answer
  comes at once, in two deltas. If the configuration coalesces, it comes in one, as late as its last
  token.
- `slots`: requests that run at once; others wait for their turn. `load_ms`: added to `token_ms` for
  each request that runs.
- `answer_tokens`: longest answer. `empty_every`: every n-th answer is empty.
- `fail_start`: not 0: the engine does not start.
- `fail_at`, `hang_at`: the n-th request, counted from 1, fails or is never answered.
"""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import nullcontext
from itertools import takewhile

from backends.types import NO_REUSE, Backend, Delta, EngineConfig, Finish, Request, Reuse, Stats
from errors import EngineError, UsageError

DEFAULTS: dict[str, float] = {
    "first_token_ms": 0,
    "token_ms": 0,
    "slots": float("inf"),
    "load_ms": 0,
    "answer_tokens": float("inf"),
    "empty_every": 0,
    "fail_start": 0,
    "fail_at": 0,
    "hang_at": 0,
}


class EchoEngine(Backend):
    """Answers each prompt with itself, up to its first stop id or the request's limit."""

    def __init__(self, config: EngineConfig) -> None:
        """Raises: UsageError for an unknown option or one that is not a number."""
        super().__init__(config)
        self._options = DEFAULTS | {
            key: _number(key, value) for key, value in config.options.items()
        }
        self._requests = 0
        self._open = 0
        self._running = 0
        slots = self._options["slots"]
        self._slots = asyncio.Semaphore(int(slots)) if slots < float("inf") else nullcontext()

    async def start(self) -> None:
        if self._options["fail_start"]:
            raise EngineError("echo: told to fail at the start")

    async def stream(self, request: Request) -> AsyncGenerator[Delta, None]:
        self._requests += 1
        number = self._requests
        if number == self._options["fail_at"]:
            raise EngineError(f"echo: told to fail at request {number}")
        if number == self._options["hang_at"]:
            await asyncio.Event().wait()

        ids = request.prompt_ids
        if not request.stop_ids.isdisjoint(ids):  # the fast path matters: this engine is timed
            ids = tuple(takewhile(lambda id_: id_ not in request.stop_ids, ids))
        every = self._options["empty_every"]
        if every and number % every == 0:
            ids = ()
        limit = int(min(len(ids), request.max_new_tokens, self._options["answer_tokens"]))
        finish: Finish = "stop" if limit < request.max_new_tokens else "length"

        deltas = self._split(ids[:limit])
        self._open += 1
        try:
            async with self._slots:
                self._running += 1
                try:
                    for position, new in enumerate(deltas, 1):
                        # 0 yields to other requests
                        await asyncio.sleep(self._wait_s(position, len(new)))
                        last = position == len(deltas)
                        yield Delta(new, finish if last else None, time.monotonic_ns())
                finally:
                    self._running -= 1
        finally:
            self._open -= 1

    async def reuse(self) -> Reuse:
        return NO_REUSE

    async def stats(self) -> Stats:
        return Stats(self._running, self._open - self._running)

    async def close(self) -> None:
        pass

    def _wait_s(self, position: int, tokens: int) -> float:
        """Seconds before an answer's delta of so many tokens, by its position from 1."""
        token_ms = self._options["token_ms"] + self._options["load_ms"] * self._running
        if position > 1:
            return tokens * token_ms / 1e3
        return (self._options["first_token_ms"] + max(tokens - 1, 0) * token_ms) / 1e3

    def _split(self, ids: tuple[int, ...]) -> list[tuple[int, ...]]:
        """One delta if the configuration coalesces, one a token if these take time, else two."""
        if self.config.coalesce or len(ids) < 2:
            return [ids]
        if self._options["token_ms"] or self._options["load_ms"]:
            return [(id_,) for id_ in ids]
        return [ids[:1], ids[1:]]


def _number(key: str, value: str) -> float:
    if key not in DEFAULTS:
        raise UsageError(f"echo has no option {key!r} (known: {', '.join(DEFAULTS)})")
    try:
        return float(value)
    except ValueError:
        raise UsageError(f"echo: {key}={value} is not a number") from None
