"""Which of several servers gets a request, and when.

It is the one with the fewest outstanding tokens, of those with room: `--max-running` limits the
open requests of each. The others wait here, and have no server yet. Where all requests come at
once, the last of them don't go to slow servers: a server gets none that faster ones will have
answered sooner.
"""

import asyncio
import sys
import time
from collections import deque
from collections.abc import Sequence
from typing import Self

from backends.endpoint import Endpoint
from backends.types import Request


class Dispatch:
    """Gives requests to servers, in the order in which they come."""

    def __init__(self, endpoints: Sequence[Endpoint], limit: int, at_once: bool) -> None:
        """`limit`: open requests of a server, or 0. `at_once`: all requests come at once."""
        self._endpoints = endpoints
        self._limit = limit or sys.maxsize
        self._looks_ahead = at_once and limit > 0
        self._waiting: deque[tuple[Request, asyncio.Future[Share]]] = deque()

    @property
    def waiting(self) -> int:
        """Requests that have no server yet."""
        return len(self._waiting)

    @property
    def usable(self) -> list[Endpoint]:
        """The servers that are not lost."""
        return [each for each in self._endpoints if not each.lost]

    async def share(self, request: Request) -> "Share":
        """Wait for a server to have room."""
        future: asyncio.Future[Share] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, future))
        self.deal()
        try:
            return await future
        except asyncio.CancelledError:
            if not future.cancelled():  # it has got one meanwhile
                future.result().close()
            raise

    def share_now(self, request: Request) -> "Share":
        """A share of the server with the fewest outstanding tokens, though it may be full."""
        return Share(self, min(self.usable, key=_load), request)

    def deal(self) -> None:
        """Give waiting requests to servers, as long as one should have another."""
        while self._waiting and (endpoint := self._next()):
            request, future = self._waiting.popleft()
            if not future.cancelled():
                future.set_result(Share(self, endpoint, request))

    def expected(self) -> int | None:
        """Tokens of an answer: as many as those so far have on average."""
        answers = sum(each.answers for each in self._endpoints)
        return sum(each.answer_tokens for each in self._endpoints) // answers if answers else None

    def _next(self) -> Endpoint | None:
        """The server for another request. Those that come one at a time are dealt out in turn."""
        usable = self.usable
        if not usable:
            return self._endpoints[0]  # the request fails there
        room = sorted((each for each in usable if each.open < self._limit), key=_load)
        if not self._looks_ahead:
            return room[0] if room else None
        return next((each for each in room if self._in_time(each, usable)), None)

    def _in_time(self, endpoint: Endpoint, usable: Sequence[Endpoint]) -> bool:
        """Whether a server will have answered another request before the faster ones have answered
        all that wait. Times are those of an answer's token."""
        faster = [each.pace for each in usable if each.pace and each.pace < endpoint.pace]
        if not faster:
            return True
        rate = sum(self._limit / pace for pace in faster)
        return endpoint.pace <= len(self._waiting) / rate + min(faster)


class Share:
    """One request at a server, with the tokens of prompt and answer that the server has yet to
    compute. An answer's length is not known before its end."""

    def __init__(self, dispatch: Dispatch, endpoint: Endpoint, request: Request) -> None:
        self.endpoint, self.request = endpoint, request
        self._dispatch = dispatch
        self._began = time.monotonic()
        self._received = 0  # tokens
        self._prompt = len(request.prompt_ids)
        answer = dispatch.expected()
        most = request.max_new_tokens
        self._left = self._prompt + (most if answer is None else min(answer, most))
        endpoint.open += 1
        endpoint.sent += 1
        endpoint.outstanding += self._left

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def receive(self, tokens: int) -> None:
        """So many tokens of the answer have arrived. With the first, the prompt is computed."""
        computed = min(self._left, self._prompt + tokens)
        self._prompt = 0
        self._received += tokens
        self._left -= computed
        self.endpoint.outstanding -= computed

    def finish(self) -> None:
        """The answer is complete."""
        self.endpoint.answers += 1
        self.endpoint.answer_tokens += self._received
        self.endpoint.answer_s += time.monotonic() - self._began

    def close(self) -> None:
        """The request is over; its place is another one's."""
        self.endpoint.open -= 1
        self.endpoint.outstanding -= self._left
        self._dispatch.deal()


def _load(endpoint: Endpoint) -> tuple[int, int]:
    return endpoint.outstanding, endpoint.sent
