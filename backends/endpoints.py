"""HTTP servers as one engine, whoever started them.

The API of each kind of server is its `Dialect` (`dialect.py`). A request goes to the server with
the fewest outstanding tokens. In a measured run nothing is retried, and any failure ends it: a
result counts only if every request did. Elsewhere (`EngineConfig.failover`) the requests of a
server that is lost go to the others.
"""

import asyncio
import logging
import os
import resource
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

import msgspec

from backends.dialect import KEY, Dialect, Events, Part, PrefixCache, Served, content, refusal
from backends.dispatch import Dispatch, Share
from backends.drive import SILENT_S, cancel
from backends.endpoint import CHECK_S, Endpoint
from backends.http_client import Connection, ExchangeError, clients
from backends.options import model_length
from backends.types import Backend, Delta, EngineConfig, Request, Reuse, Stats
from errors import EngineError, LengthError, UsageError

log = logging.getLogger(__name__)

PROBE_S = 300.0  # a server's first request may compile kernels
WATCH_S = 10.0  # between health checks, which cost a server next to nothing
HUNG_S = 60.0  # without a passed health check; receiving 4,388 prompts may block a server long
PROBE = Request(-1, (0, 1, 2), 4, frozenset())  # of ids in every vocabulary


class Endpoints(Backend):
    """Running servers.

    Raises: UsageError for URLs. From `start`: EngineError naming a server that can't be reached,
    fails its health check, refuses the key, serves another model or returns no token ids;
    LengthError for one whose context is too short; ModelError. From `stream`: EngineError naming
    server and request.
    """

    def __init__(
        self,
        config: EngineConfig,
        dialect: Dialect,
        urls: Sequence[str] | None = None,
        key: str | None = None,
    ) -> None:
        """`urls` and `key` replace those of configuration and environment."""
        super().__init__(config)
        self._dialect = dialect
        key = key or os.environ.get(KEY)
        urls = config.endpoints if urls is None else urls
        servers = [client for url in urls for client in clients(url, key)]
        if not servers:
            raise UsageError("--endpoint: no endpoint is given")
        if len({client.address for client in servers}) < len(servers):
            raise UsageError(f"--endpoint names one twice: {', '.join(c.url for c in servers)}")
        self._endpoints = [Endpoint(client) for client in servers]
        self._dispatch = Dispatch(self._endpoints, config.max_running or 0, config.coalesce)
        self._watches: list[asyncio.Task] = []
        self._before: list[PrefixCache] = []  # of each server, before the run
        self._cached: list[int | None] = []  # of each answered prompt: `Part.cached`
        self._answering: dict[int, Endpoint] = {}  # by the id of an open request
        self._failure: EngineError | None = None
        # where answers come whole, none of a lost one has been given out
        self._can_lose = config.failover and config.coalesce

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
        self._before = await self._prefix_caches()
        for endpoint, prefix_cache in zip(self._endpoints, self._before, strict=True):
            if prefix_cache.enabled:
                log.warning(
                    "%s has prefix caching enabled: a run whose prompts hit the cache can't be"
                    " submitted. Start the server with %s",
                    endpoint.client.url,
                    prefix_cache.advice,
                )
        self._cached.clear()  # of the probes
        for endpoint in self._endpoints:
            endpoint.forget()
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

    def endpoint(self, request: Request) -> str | None:
        endpoint = self._answering.get(request.id)
        return endpoint.client.url if endpoint else None

    async def reuse(self) -> Reuse:
        """From the answers if each reported it; else from the servers' counters since the start,
        which include other clients' requests."""
        before, after = self._before, await self._prefix_caches()
        states = {prefix_cache.enabled for prefix_cache in (*before, *after)}
        enabled = True if True in states else None if None in states else False
        reported = [cached for cached in self._cached if cached is not None]
        if reported and len(reported) == len(self._cached):
            return Reuse(enabled, sum(reported), max(reported))
        hits = [
            new.hits - old.hits
            for old, new in zip(before, after, strict=True)
            if old.hits is not None and new.hits is not None
        ]
        if len(hits) < len(after):
            return Reuse(enabled)
        return Reuse(enabled, sum(hits), block_size=min(p.block_size for p in after))

    async def stats(self) -> Stats:
        """Of all servers together, other clients' requests included."""
        stats = Stats.total(await asyncio.gather(*map(self._stats, self._endpoints)))
        if stats.waiting is None:
            return stats
        return replace(stats, waiting=stats.waiting + self._dispatch.waiting)

    async def _stats(self, endpoint: Endpoint) -> Stats:
        try:
            return await self._dialect.stats(endpoint.get)
        except (EngineError, ValueError):
            return Stats()

    async def _prefix_caches(self) -> list[PrefixCache]:
        """Of each server; of one that fails or does not respond in time, nothing is known."""
        prefix_caches = []
        for endpoint in self._endpoints:
            try:
                async with asyncio.timeout(CHECK_S):
                    prefix_caches.append(await self._dialect.prefix_cache(endpoint.get))
            except (EngineError, ValueError, TimeoutError):
                prefix_caches.append(PrefixCache())
        return prefix_caches

    async def detokenize(self, ids: Sequence[int]) -> str | None:
        """By the first server that can."""
        for endpoint in self._endpoints:
            if (text := await endpoint.detokenize(ids)) is not None:
                return text
        return None

    async def stream(self, request: Request) -> AsyncGenerator[Delta, None]:
        share = await self._dispatch.share(request)
        while True:
            with share:
                try:
                    async with aclosing(self._ask(share)) as deltas:
                        async for delta in deltas:
                            yield delta
                    return
                except EngineError:
                    if not share.endpoint.lost or not self._dispatch.usable:
                        raise
            share.endpoint.moved += 1
            share = self._dispatch.share_now(request)

    async def close(self) -> None:
        for endpoint in self._endpoints:
            if endpoint.moved and not self._failure:
                log.warning(
                    "%s was lost: %s; of its requests, %d were answered by other servers",
                    *(endpoint.client.url, endpoint.lost, endpoint.moved),
                )
        await cancel(self._watches)
        self._fail(EngineError("the connections to the servers were closed"))

    async def _ask(self, share: Share) -> AsyncGenerator[Delta, None]:
        """One server's answer. Closing it early closes the connection, and the server aborts."""
        endpoint, request = share.endpoint, share.request
        if self._failure:
            raise self._failure
        if not endpoint.served:
            raise EngineError("the servers have not been started")
        whole = self._whole(endpoint)
        self._answering[request.id] = endpoint
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
                share.receive(len(ids))
                if finish:
                    self._cached.append(part.cached)
                    share.finish()
                if finish == "stop":
                    if not ids or ids[-1] not in request.stop_ids:
                        last = f"at id {ids[-1]}" if ids else "without an id"
                        raise ValueError(f"stopped {last}, which is no stop id of the request")
                    ids = ids[:-1]
                yield Delta(tuple(ids), finish, connection.at_ns)
        except ExchangeError as error:
            if self._can_lose:
                self._lose(endpoint, str(error))
            raise endpoint.error(str(error), request) from error
        except ValueError as error:
            raise endpoint.error(str(error), request) from error
        finally:
            self._answering.pop(request.id, None)  # probes of several servers have one id
            if connection and finish:
                connection.release()
            elif connection:
                connection.abort()

    def _whole(self, endpoint: Endpoint) -> bool:
        """Whether answers come in one piece. In a measured run a router must not have a second
        server answer when the first is lost, and once a stream has begun it does not."""
        assert endpoint.served
        return self.config.coalesce and (self.config.failover or endpoint.served.behind is None)

    def _lose(self, endpoint: Endpoint, reason: str) -> None:
        """Use a server no more; its open requests fail."""
        if not endpoint.lost:
            endpoint.lost = reason
            left = len(self._dispatch.usable)
            log.warning("%s is lost: %s; %d servers are left", endpoint.client.url, reason, left)
            endpoint.client.close(ExchangeError(reason))

    async def _parts(
        self, connection: Connection, request: Request, whole: bool
    ) -> AsyncIterator[Part]:
        """An answer in parts, one for each wake-up of the reader; the last one has `finish`."""
        reader = self._dialect.reader(request)

        def read(data: bytes, what: str) -> Part:
            try:
                return reader(data)
            except msgspec.DecodeError as error:
                raise ValueError(f"{self._dialect.generate}: {what} is {content(data)}") from error

        if whole:
            part = read(await connection.read_all(), "the response")
            if not part.finish:
                raise ValueError("the answer has no finish reason")
            yield part
            return
        events = Events()
        finish = None
        while not finish:
            data = await connection.read()
            if not data:
                raise ValueError("the stream ended before the answer did")
            ids: list[int] = []
            cached = None
            for event in events.feed(data):
                part = read(event, "an event")
                ids += part.token_ids
                finish, cached = part.finish, part.cached
                if finish:
                    break
            if ids or finish:
                yield Part(ids, finish, cached)

    async def _check(self, endpoint: Endpoint, names: set[str], length: int) -> None:
        """Check that a server can do this run, and let it generate a few tokens."""
        try:
            async with asyncio.timeout(CHECK_S):
                await endpoint.get(self._dialect.health)
                offered = await self._dialect.describe(endpoint.get)
        except TimeoutError:
            raise endpoint.error(
                f"did not answer {self._dialect.health} and name its model within {CHECK_S:g} s"
            ) from None
        except ValueError as error:
            raise endpoint.error(str(error)) from error
        endpoint.served = served = self._choose(endpoint, offered, names)
        if served.max_model_len is not None and served.max_model_len < length:
            raise LengthError(
                f"endpoint {endpoint.client.url}: the server's length is {served.max_model_len} "
                f"tokens and the run may need {length}: start it with more, or give --max-model-len"
                f" {served.max_model_len}"
            )
        warning = asyncio.get_running_loop().call_later(
            SILENT_S,
            log.warning,
            "%s has generated nothing for %g s",
            endpoint.client.url,
            SILENT_S,
        )
        try:
            with Share(self._dispatch, endpoint, PROBE) as share:
                async with asyncio.timeout(PROBE_S):
                    ids: list[int] = []
                    async for delta in self._ask(share):
                        ids += delta.token_ids
        except TimeoutError:
            raise endpoint.error(f"healthy, but generated nothing within {PROBE_S:g} s") from None
        finally:
            warning.cancel()
        if len(ids) != PROBE.max_new_tokens:
            raise endpoint.error(
                f"returned {len(ids)} token ids for a request of {PROBE.max_new_tokens} tokens"
            )
        log.info("%s: %s, %s", endpoint.client.url, served.name, served.version)

    def _choose(self, endpoint: Endpoint, offered: list[Served], names: set[str]) -> Served:
        """The model to request."""
        requested = self.config.served_model
        for served in offered:
            theirs = {served.name, served.root}
            if requested == served.name or (requested is None and _same(names, theirs)):
                return served
        offers = ", ".join(served.name for served in offered) or "no model"
        expected = requested or " or ".join(sorted(names))
        raise endpoint.error(
            f"serves {offers}, not {expected}; if that is the same model, give --served-model"
            f" {offered[0].name if offered else 'NAME'}"
        )

    async def _watch(self, endpoint: Endpoint) -> None:
        """Check a server's health; when it has failed for HUNG_S, the server is lost, or the run
        ends."""
        healthy_at = time.monotonic()
        while time.monotonic() - healthy_at < HUNG_S:
            await asyncio.sleep(WATCH_S)
            if endpoint.lost:
                return
            try:
                await self._check_health(endpoint)
            except EngineError as error:
                log.warning("%s", error)
            else:
                healthy_at = time.monotonic()
        reason = f"failed its health checks for {HUNG_S:g} s"
        if self._can_lose:
            self._lose(endpoint, reason)
        else:
            self._fail(endpoint.error(reason))

    async def _check_health(self, endpoint: Endpoint) -> None:
        """Raises: EngineError for a server that is not healthy, or in a measured run for one that
        a router has lost."""
        assert endpoint.served
        try:
            async with asyncio.timeout(WATCH_S):
                if self.config.failover:
                    await endpoint.get(self._dialect.health)
                else:
                    await self._dialect.check(endpoint.get, endpoint.served)
        except TimeoutError:
            raise endpoint.error("the health check timed out") from None
        except ValueError as error:
            raise endpoint.error(str(error)) from error

    def _fail(self, error: EngineError) -> None:
        """Raise `error` in every open stream and every later one."""
        self._failure = self._failure or error
        for endpoint in self._endpoints:
            endpoint.client.close(self._failure)


def _names(model: str) -> set[str]:
    """Names that a server may use for a model directory: its path, and the id of a model in the
    Hugging Face cache."""
    path = Path(model).resolve()
    names = {str(path)}
    if path.parent.name == "snapshots" and path.parents[1].name.startswith("models--"):
        names.add(path.parents[1].name.removeprefix("models--").replace("--", "/"))
    return names


def _same(ours: set[str], theirs: set[str]) -> bool:
    """Whether two of them are equal, or paths that end in the same name."""
    return not {PurePath(name).name for name in ours}.isdisjoint(
        PurePath(name).name for name in theirs
    )


def _raise_descriptor_limit() -> None:
    """Every open request has a connection, and every connection a file descriptor."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
