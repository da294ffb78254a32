"""Servers that answer over HTTP, as one engine: what they share, whoever started them.

How a kind of server is asked and what it says is its `Dialect` (`dialect.py`). A request goes to
the server with the fewest open ones. Nothing is tried twice, and whatever fails ends the run: a
figure is only good if every request counted.
"""

import asyncio
import logging
import os
import resource
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from pathlib import Path, PurePath
from typing import Any

import msgspec

from backends.dialect import KEY, Dialect, Events, Part, Prefixes, Served, content, refusal
from backends.drive import SILENT_S, cancel
from backends.http_client import Client, Connection, ExchangeError
from backends.options import model_length
from backends.types import Backend, Delta, EngineConfig, Request, Reuse
from errors import EngineError, LengthError, UsageError

log = logging.getLogger(__name__)

CHECK_S = 30.0  # a server that runs tells of itself at once, unless it is at work for others
PROBE_S = 300.0  # a server's first request may compile kernels
WATCH_S = 10.0  # between looks at a server's health, which cost it next to nothing
HUNG_S = 60.0  # without health; a server at work may be deaf for as long as it reads 4,388 prompts
PROBE = Request(-1, (0, 1, 2), 4, frozenset())  # ids that every vocabulary has


class _Text(msgspec.Struct):
    """What /detokenize answers."""

    text: str | None = None  # SGLang's name for it
    prompt: str | None = None  # vLLM's


_decode_text = msgspec.json.Decoder(_Text).decode


class Endpoint:
    """One server."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.outstanding = 0  # requests
        self.sent = 0  # requests, all told
        self.served: Served | None = None

    async def get(self, path: str) -> bytes:
        """A path's content. Raises: EngineError naming the URL."""
        try:
            response = await self.client.fetch(path)
        except ExchangeError as error:
            raise self.error(str(error)) from error
        if response.status != 200:
            raise self.error(refusal(path, self.client.url, response))
        return response.body

    async def detokenize(self, ids: Sequence[int]) -> str | None:
        """The text of ids by the server's tokenizer; None where it doesn't tell, whyever."""
        assert self.served
        asked = {"model": self.served.name, "tokens": ids, "skip_special_tokens": False}
        try:
            async with asyncio.timeout(CHECK_S):
                response = await self.client.fetch("/detokenize", msgspec.json.encode(asked))
            told = _decode_text(response.body) if response.status == 200 else _Text()
        except (ExchangeError, ValueError, TimeoutError):
            return None
        return told.prompt if told.text is None else told.text

    def error(self, said: str, request: Request | None = None) -> EngineError:
        """What a failure of this server, or of one request to it, is told by."""
        which = f"{request.name}: " if request and request is not PROBE else ""
        return EngineError(f"endpoint {self.client.url}: {which}{said}")


class Endpoints(Backend):
    """Servers that run already.

    Raises: UsageError for URLs. From `start`: EngineError naming the server that can't be reached,
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
        self._before: list[Prefixes] = []  # of each server, before the run
        self._cached: list[int | None] = []  # tokens of each prompt answered, where they are told
        self._asked: dict[int, Endpoint] = {}  # which one answers, by the id of an open request
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
        self._before = await self._prefixes()
        for endpoint, prefixes in zip(self._endpoints, self._before, strict=True):
            if prefixes.enabled:
                log.warning(
                    "%s keeps a cache of prefixes: a run that takes prompts from it can't be"
                    " submitted. Start the server with %s",
                    endpoint.client.url,
                    prefixes.advice,
                )
        self._cached.clear()  # of the probes
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

    def place(self, request: Request) -> str:
        endpoint = self._asked.get(request.id)
        return f"endpoint {endpoint.client.url}: " if endpoint else ""

    async def reuse(self) -> Reuse:
        """As each answer told it; else as the servers have counted since the start, the requests
        of others among them."""
        before, after = self._before, await self._prefixes()
        states = {prefixes.enabled for prefixes in (*before, *after)}
        enabled = True if True in states else None if None in states else False
        told = [cached for cached in self._cached if cached is not None]
        if told and len(told) == len(self._cached):
            return Reuse(enabled, sum(told), max(told))
        hits = [
            new.hits - old.hits
            for old, new in zip(before, after, strict=True)
            if old.hits is not None and new.hits is not None
        ]
        if len(hits) < len(after):
            return Reuse(enabled)
        return Reuse(enabled, sum(hits), block_size=min(p.block_size for p in after))

    async def _prefixes(self) -> list[Prefixes]:
        """Of each server; one that can't be asked, or does not answer in time, tells nothing."""
        found = []
        for endpoint in self._endpoints:
            try:
                async with asyncio.timeout(CHECK_S):
                    found.append(await self._dialect.prefixes(endpoint.get))
            except (EngineError, ValueError, TimeoutError):
                found.append(Prefixes())
        return found

    async def detokenize(self, ids: Sequence[int]) -> str | None:
        """As the first server that tells."""
        for endpoint in self._endpoints:
            if (text := await endpoint.detokenize(ids)) is not None:
                return text
        return None

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
        self._asked[request.id] = endpoint
        connection = None
        finish = None
        try:
            body = self._dialect.body(request, endpoint.served.name, whole)
            connection = await endpoint.client.open(self._dialect.generate, body)
            if await connection.status() != 200:
                path, response = self._dialect.generate, await connection.whole()
                raise ValueError(refusal(path, endpoint.client.url, response))
            async for part in self._parts(connection, request, whole):
                ids, finish = part.token_ids, part.finish
                if finish:
                    self._cached.append(part.cached)
                if finish == "stop":
                    if not ids or ids[-1] not in request.stop_ids:
                        last = f"at id {ids[-1]}" if ids else "without an id"
                        raise ValueError(f"it has stopped {last}, at no stop id of the request")
                    ids = ids[:-1]
                yield Delta(tuple(ids), finish, connection.at_ns)
        except (ExchangeError, ValueError) as error:
            raise endpoint.error(str(error), request) from error
        finally:
            endpoint.outstanding -= 1
            self._asked.pop(request.id, None)  # a probe's is every server's
            if connection and finish:
                connection.release()
            elif connection:
                connection.abort()

    async def _parts(
        self, connection: Connection, request: Request, whole: bool
    ) -> AsyncIterator[Part]:
        """An answer in as many parts as the reader is woken times; the last one has the finish."""
        reader = self._dialect.reader(request)

        def read(data: bytes, said: str) -> Part:
            try:
                return reader(data)
            except msgspec.DecodeError as error:
                raise ValueError(f"{self._dialect.generate} {said} {content(data)}") from error

        if whole:
            part = read(await connection.read_all(), "answers")
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
            cached = None
            for event in events.feed(data):
                part = read(event, "sends an event of")
                ids += part.token_ids
                finish, cached = part.finish, part.cached
                if finish:
                    break
            if ids or finish:
                yield Part(ids, finish, cached)

    async def _check(self, endpoint: Endpoint, names: set[str], length: int) -> None:
        """Whether a server can do the run."""
        try:
            async with asyncio.timeout(CHECK_S):
                await endpoint.get(self._dialect.health)
                offered = await self._dialect.describe(endpoint.get)
        except TimeoutError:
            raise endpoint.error(
                f"it did not answer {self._dialect.health} and tell its model within {CHECK_S:g} s"
            ) from None
        except ValueError as error:
            raise endpoint.error(str(error)) from error
        endpoint.served = served = self._choose(endpoint, offered, names)
        if served.max_model_len is not None and served.max_model_len < length:
            raise LengthError(
                f"endpoint {endpoint.client.url}: its length is {served.max_model_len} tokens and "
                f"the run may need {length}: start it for that, or give --max-model-len "
                f"{served.max_model_len}"
            )
        silent = asyncio.get_running_loop().call_later(
            SILENT_S,
            log.warning,
            "%s has generated nothing for %g s",
            endpoint.client.url,
            SILENT_S,
        )
        try:
            async with asyncio.timeout(PROBE_S):
                ids: list[int] = []
                async for delta in self._ask(endpoint, PROBE):
                    ids += delta.token_ids
        except TimeoutError:
            raise endpoint.error(f"healthy, but nothing generated within {PROBE_S:g} s") from None
        finally:
            silent.cancel()
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
