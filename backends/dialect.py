"""The requests and responses of HTTP servers: what all kinds have in common.

The rest, a kind's own paths and JSON, is its `Dialect`.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import msgspec

from backends.http_client import Response
from backends.types import Finish, Request, Stats
from ref_dsinfer import lookalike

KEY = "MLPERF_ENDPOINT_KEY"  # environment variable: others can read command lines
QUOTED = 200  # characters of a server's message

Decoded = TypeVar("Decoded")


@dataclass(frozen=True)
class Served:
    """A model that a server serves."""

    name: str  # as requests name it
    root: str  # path or id that the server loaded it from
    max_model_len: int | None  # tokens of prompt and answer together
    version: str  # of the server
    behind: int | None = None  # servers, where this is a router; None: it is a server


@dataclass(frozen=True)
class Part:
    """The content of one event of a stream, or of a whole answer."""

    token_ids: Sequence[int]  # new ones; the last may be the stop id
    finish: Finish | None
    cached: int | None = None  # prompt tokens from the prefix cache; None: not reported


@dataclass(frozen=True)
class PrefixCache:
    """What a server reports about its prefix cache; None: not reported."""

    enabled: bool | None = None
    hits: int | None = None  # tokens, of all prompts so far
    block_size: int = 1  # tokens that are cached together
    advice: str = ""  # the argument that starts a server without one


Get = Callable[[str], Awaitable[bytes]]  # a path's content. Raises: EngineError naming the URL
Read = Callable[[bytes], Part]  # Raises: ValueError with the server's message, or what is wrong


class Dialect(ABC):
    """The API of one kind of server."""

    health: ClassVar[str] = "/health"
    generate: ClassVar[str]  # path of a generation request

    @abstractmethod
    async def describe(self, get: Get) -> list[Served]:
        """The models that a server serves. Raises: as `get`; ValueError for an invalid response."""

    async def check(self, get: Get, served: Served) -> None:
        """Check the health of a server, and of those behind it. Raises: as `describe`."""
        await get(self.health)

    @abstractmethod
    async def prefix_cache(self, get: Get) -> PrefixCache:
        """What a server reports about its prefix cache. Raises: as `describe`."""

    @abstractmethod
    async def stats(self, get: Get) -> Stats:
        """What a server is doing now. Raises: as `describe`."""

    @abstractmethod
    def body(self, request: Request, model: str, whole: bool) -> bytes:
        """A request as JSON, for a stream or with `whole` for an answer in one piece.

        The answer must end at any of the stop ids, and at no other id.
        Raises: ValueError for a request that must not be sent.
        """

    @abstractmethod
    def reader(self, request: Request) -> Read:
        """A parser for the events of one request's stream, or for its whole answer."""


class Events:
    """Splits a stream into server-sent events; ours have one line of data each."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterable[bytes]:
        """The data of all complete events, without the end marker."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [
            line[5:].strip()
            for line in lines
            if line.startswith(b"data:") and not line.startswith(b"data: [DONE]")
        ]


async def answer(get: Get, path: str, decode: Callable[[bytes], Decoded]) -> Decoded:
    """A path's JSON, decoded. Raises: as `get`; ValueError naming the path."""
    data = await get(path)
    try:
        return decode(data)
    except msgspec.ValidationError as error:
        raise ValueError(f"{path}: unexpected JSON: {error}") from error
    except msgspec.DecodeError as error:
        raise ValueError(f"{path}: the response is {content(data)}") from error


def content(data: bytes) -> str:
    """What a server sent instead of JSON."""
    if data.startswith(lookalike.GZIP):
        return "JSON compressed by gzip, which was not requested: is there a proxy in between?"
    really = lookalike.what_it_is(data[: lookalike.HEAD])
    if really in (None, lookalike.JSON):
        return f"not JSON: {one_line(data.decode(errors='replace'))}"
    return f"not JSON but {str(really).partition(':')[0]}: is this the engine's own address?"


def refusal(path: str, url: str, response: Response) -> str:
    """What an HTTP status other than 200 means and what to do, in one line."""
    status = response.status
    if status in (401, 403):
        return f"{path}: the server refuses the key (HTTP {status}): set {KEY} to its API key"
    if target := response.headers.get(b"location"):
        location = one_line(target.decode(errors="replace"))
        return f"{path}: HTTP {status}: redirected to {location}: use that server's --endpoint"
    try:
        message = json.loads(response.body)
        message = message.get("error", message.get("detail", message))
        message = message.get("message", message) if isinstance(message, dict) else message
    except (ValueError, AttributeError):
        message = response.body.decode(errors="replace")
    hint = ""
    if status == 404 and url.endswith("/v1"):
        hint = " (give the server's root URL, without /v1)"
    elif status == 404:
        hint = " (is this a gateway that does not forward it? give the engine's own address)"
    return f"{path}: HTTP {status}: {one_line(str(message))}{hint}"


def one_line(message: str) -> str:
    """A server's message in one line, cut short."""
    return " ".join(message.split())[:QUOTED]
