"""Servers that answer over HTTP, as one engine: what they share, whoever started them.

How a kind of server is asked and what it says is its `Dialect`. A request goes to the server with
the fewest open ones. Nothing is tried twice, and whatever fails ends the run: a figure is only
good if every request counted.
"""

import asyncio
import json
import logging
import os
import resource
import time
from abc import ABC, abstractmethod
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, ClassVar

from backends.drive import cancel
from backends.http_client import Client, Connection, ExchangeError
from backends.options import model_length
from backends.types import Backend, Delta, EngineConfig, Finish, Request
from ref_dsinfer.errors import EngineError, LengthError, UsageError

log = logging.getLogger(__name__)

KEY = "MLPERF_ENDPOINT_KEY"  # environment variable; on a command line others could read it
CHECK_S = 30.0  # a server that runs tells of itself at once, unless it is at work for others
PROBE_S = 300.0  # a server's first request may compile kernels
WATCH_S = 10.0  # between looks at a server's health, which cost it next to nothing
HUNG_S = 60.0  # without health; a server at work may be deaf for as long as it reads 4,388 prompts
PROBE = Request(-1, (0, 1, 2), 4, frozenset())  # ids that every vocabulary has
QUOTED = 200  # characters of what a server says


@dataclass(frozen=True)
class Served:
    """A model that a server offers."""

    name: str  # as requests name it
    root: str  # where the server has it from
    max_model_len: int | None  # tokens of prompt and answer together
    version: str  # of the server


@dataclass(frozen=True)
class Part:
    """What one event of a stream, or a whole answer, holds."""

    token_ids: Sequence[int]  # new ones; the stop id may or may not be among them, as the last
    finish: Finish | None


Get = Callable[[str], Awaitable[bytes]]  # a path's content. Errors: EngineError naming the URL
Read = Callable[[bytes], Part]  # Errors: ValueError saying what the server said, or what is wrong


class Dialect(ABC):
    """How one kind of server is spoken to."""

    health: ClassVar[str] = "/health"
    generate: ClassVar[str]  # path of a generation request

    @abstractmethod
    async def describe(self, get: Get) -> list[Served]:
        """The models that a server offers. Errors: those of `get`; ValueError for an odd answer."""

    @abstractmethod
    def body(self, request: Request, model: str, whole: bool) -> bytes:
        """A request as JSON. `whole`: the answer is wanted in one piece, else as a stream.

        The answer must end at any of the stop ids, and at no other. Errors: ValueError for what may
        not be sent.
        """

    @abstractmethod
    def reader(self, request: Request) -> Read:
        """What reads the events of one request's stream, or its whole answer."""


class Events:
    """Cuts a stream of server-sent events; ours hold one line of data each."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterable[bytes]:
        """The data of all events that are complete; the mark of the end is left out."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [
            line[5:].strip()
            for line in lines
            if line.startswith(b"data:") and not line.startswith(b"data: [DONE]")
        ]


class Endpoint:
    """One server."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.outstanding = 0  # requests
        self.sent = 0  # requests, all told
        self.served: Served | None = None

    async def get(self, path: str) -> bytes:
        """A path's content. Errors: EngineError naming the URL."""
        try:
            status, data = await self.client.fetch(path)
        except ExchangeError as error:
            raise self.error(str(error)) from error
        if status != 200:
            raise self.error(f"{path}: {refusal(status, data)}")
        return data

    def error(self, said: str, request: Request | None = None) -> EngineError:
        """What a failure of this server, or of one request to it, is told by."""
        which = f"request {request.id}: " if request and request is not PROBE else ""
        return EngineError(f"endpoint {self.client.url}: {which}{said}")


class Endpoints(Backend):
    """Servers that run already.

    Errors: UsageError for URLs. From `start`: EngineError naming the server that can't be reached,
    is not well, refuses the key, serves another model, or gives no token ids; LengthError for one
    of too short a length; ModelError. From `stream`: EngineError naming server and request.
    """

    def __init__(
        self,
        config: EngineConfig,
        dialect: Dialect,
        urls: Sequence[str] | None = None,
        key: str | None = None,
    ) -> None:
        """`urls` and `key`: where they are not the configuration's and the environment's."""
        super().__init__(config)
        self._dialect = dialect
        key = key or os.environ.get(KEY)
        clients = [Client(url, key) for url in (config.endpoints if urls is None else urls)]
        if not clients:
            raise UsageError("no endpoint is given")
        if len({client.address for client in clients}) < len(clients):
            raise UsageError(f"an endpoint is given twice: {', '.join(c.url for c in clients)}")
        self._endpoints = [Endpoint(client) for client in clients]
        limit = config.max_running
        self._places = asyncio.Semaphore(limit * len(clients)) if limit else None
        self._watches: list[asyncio.Task] = []
        self._failure: EngineError | None = None

    async def start(self) -> None:
        _raise_descriptor_limit()
        names = _names(self.config.model)
        length = self.config.max_model_len or model_length(self.config)
        checks = [
            asyncio.create_task(self._check(endpoint, names, length))
            for endpoint in self._endpoints
        ]
        try:
            await asyncio.gather(*checks)
        finally:
            await cancel(checks)
        self._watches = [asyncio.create_task(self._watch(endpoint)) for endpoint in self._endpoints]

    def effective(self) -> Mapping[str, Any]:
        return {
            endpoint.client.url: {
                "model": endpoint.served.name,
                "root": endpoint.served.root,
                "max_model_len": endpoint.served.max_model_len,
                "version": endpoint.served.version,
            }
            for endpoint in self._endpoints
            if endpoint.served
        }

    async def stream(self, request: Request) -> AsyncIterator[Delta]:
        async with AsyncExitStack() as held:
            if self._places:
                await held.enter_async_context(self._places)
            # the second key shares requests out that come one at a time
            endpoint = min(self._endpoints, key=lambda each: (each.outstanding, each.sent))
            deltas = await held.enter_async_context(aclosing(self._ask(endpoint, request)))
            async for delta in deltas:
                yield delta

    async def close(self) -> None:
        await cancel(self._watches)
        self._fail(EngineError("the connections to the servers were closed"))

    async def _ask(self, endpoint: Endpoint, request: Request) -> AsyncGenerator[Delta, None]:
        """One server's answer. Closed early, its connection is, and the server stops."""
        if self._failure:
            raise self._failure
        if not endpoint.served:
            raise EngineError("the servers have not been checked: start comes first")
        whole = self.config.coalesce
        endpoint.outstanding += 1
        endpoint.sent += 1
        connection = None
        finish = None
        try:
            body = self._dialect.body(request, endpoint.served.name, whole)
            connection = await endpoint.client.open(self._dialect.generate, body)
            status = await connection.status()
            if status != 200:
                raise ValueError(refusal(status, await connection.read_all()))
            async for part in self._parts(connection, request, whole):
                ids, finish = part.token_ids, part.finish
                if finish == "stop" and ids and ids[-1] in request.stop_ids:
                    ids = ids[:-1]
                yield Delta(tuple(ids), finish, connection.at_ns)
        except (ExchangeError, ValueError) as error:
            raise endpoint.error(str(error), request) from error
        finally:
            endpoint.outstanding -= 1
            if connection and finish:
                connection.release()
            elif connection:
                connection.abort()

    async def _parts(
        self, connection: Connection, request: Request, whole: bool
    ) -> AsyncIterator[Part]:
        """An answer in as many parts as the reader is woken times; the last one has the finish."""
        read = self._dialect.reader(request)
        if whole:
            part = read(await connection.read_all())
            if not part.finish:
                raise ValueError("its answer has no finish reason")
            yield part
            return
        events = Events()
        finish = None
        while not finish:
            data = await connection.read()
            if not data:
                raise ValueError("its stream ended before the answer")
            ids: list[int] = []
            for event in events.feed(data):
                part = read(event)
                ids += part.token_ids
                finish = part.finish
                if finish:
                    break
            if ids or finish:
                yield Part(ids, finish)

    async def _check(self, endpoint: Endpoint, names: set[str], length: int) -> None:
        """Whether a server can do the run."""
        try:
            async with asyncio.timeout(CHECK_S):
                await endpoint.get(self._dialect.health)
                offered = await self._dialect.describe(endpoint.get)
        except TimeoutError:
            raise endpoint.error(f"it has not told of itself within {CHECK_S:g} s") from None
        except ValueError as error:
            raise endpoint.error(str(error)) from error
        endpoint.served = served = self._choose(endpoint, offered, names)
        if served.max_model_len is not None and served.max_model_len < length:
            raise LengthError(
                f"endpoint {endpoint.client.url}: its length is {served.max_model_len} tokens and "
                f"the run may need {length}: start it for that, or give --max-model-len "
                f"{served.max_model_len}"
            )
        try:
            async with asyncio.timeout(PROBE_S):
                ids: list[int] = []
                async for delta in self._ask(endpoint, PROBE):
                    ids += delta.token_ids
        except TimeoutError:
            raise endpoint.error(f"healthy, but nothing generated within {PROBE_S:g} s") from None
        if len(ids) != PROBE.max_new_tokens:
            raise endpoint.error(
                f"asked for {PROBE.max_new_tokens} tokens it has given {len(ids)} token ids"
            )
        endpoint.sent = 0
        log.info("%s: %s, %s", endpoint.client.url, served.name, served.version)

    def _choose(self, endpoint: Endpoint, offered: list[Served], names: set[str]) -> Served:
        """The model to ask for."""
        asked = self.config.served_model
        for served in offered:
            theirs = {served.name, served.root}
            if asked == served.name or (asked is None and _same(names, theirs)):
                return served
        offers = ", ".join(served.name for served in offered) or "no model"
        wanted = asked or " or ".join(sorted(names))
        raise endpoint.error(
            f"it serves {offers}, not {wanted}; if that is the same model: --served-model"
            f" {offered[0].name if offered else 'NAME'}"
        )

    async def _watch(self, endpoint: Endpoint) -> None:
        """Look after a server's health, and end the run when it has been gone for long."""
        well = time.monotonic()
        while time.monotonic() - well < HUNG_S:
            await asyncio.sleep(WATCH_S)
            try:
                async with asyncio.timeout(WATCH_S):
                    await endpoint.get(self._dialect.health)
            except (EngineError, TimeoutError) as error:
                log.warning("%s", str(error) or endpoint.error("its health check hangs"))
            else:
                well = time.monotonic()
        self._fail(endpoint.error(f"it has not been well for {HUNG_S:g} s"))

    def _fail(self, error: EngineError) -> None:
        """Raise `error` in every open stream and every later one."""
        self._failure = self._failure or error
        for endpoint in self._endpoints:
            endpoint.client.close(self._failure)


def refusal(status: int, data: bytes) -> str:
    """What a server means by an HTTP status other than 200, in one line."""
    if status in (401, 403):
        return f"it refuses the key (HTTP {status}): set {KEY} to the server's own"
    try:
        said = json.loads(data)
        said = said.get("error", said.get("detail", said))
        said = said.get("message", said)
    except (ValueError, AttributeError):
        said = data.decode(errors="replace")
    hint = " (the URL is the server's root, without /v1)" if status == 404 else ""
    return f"HTTP {status}: {quoted(str(said))}{hint}"


def quoted(said: str) -> str:
    """What a server said, short and in one line."""
    return " ".join(said.split())[:QUOTED]


def _names(model: str) -> set[str]:
    """What a server may call a model directory; in a Hugging Face cache also by the model's id."""
    path = Path(model).resolve()
    names = {str(path)}
    if path.parent.name == "snapshots" and path.parents[1].name.startswith("models--"):
        names.add(path.parents[1].name.removeprefix("models--").replace("--", "/"))
    return names


def _same(ours: set[str], theirs: set[str]) -> bool:
    """Whether any two are equal, or end in the same name."""
    return not {PurePath(name).name for name in ours}.isdisjoint(
        PurePath(name).name for name in theirs
    )


def _raise_descriptor_limit() -> None:
    """Every open request is a connection, and every connection a descriptor."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
