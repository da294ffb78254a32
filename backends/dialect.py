"""What is said to servers that answer over HTTP, and read from them, whatever their kind.

How a kind of server is asked and what it says is its `Dialect`.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import msgspec

from backends.http_client import Response
from backends.types import Finish, Request
from ref_dsinfer import lookalike

KEY = "MLPERF_ENDPOINT_KEY"  # environment variable; on a command line others could read it
QUOTED = 200  # characters of what a server says

Told = TypeVar("Told")


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
    cached: int | None = None  # tokens of the prompt that were not computed, where it is told


@dataclass(frozen=True)
class Prefixes:
    """What a server tells of its cache of prefixes; None: nothing."""

    enabled: bool | None = None
    hits: int | None = None  # tokens that all prompts so far have taken from it
    block_size: int = 1  # tokens that are taken together
    advice: str = ""  # the argument that starts a server without it


Get = Callable[[str], Awaitable[bytes]]  # a path's content. Raises: EngineError naming the URL
Read = Callable[[bytes], Part]  # Raises: ValueError saying what the server said, or what is wrong


class Dialect(ABC):
    """How one kind of server is spoken to."""

    health: ClassVar[str] = "/health"
    generate: ClassVar[str]  # path of a generation request

    @abstractmethod
    async def describe(self, get: Get) -> list[Served]:
        """The models that a server offers. Raises: those of `get`; ValueError for an odd answer."""

    @abstractmethod
    async def prefixes(self, get: Get) -> Prefixes:
        """What a server tells of its cache of prefixes. Raises: as `describe`."""

    @abstractmethod
    def body(self, request: Request, model: str, whole: bool) -> bytes:
        """A request as JSON. `whole`: the answer is wanted in one piece, else as a stream.

        The answer must end at any of the stop ids, and at no other. Raises: ValueError for what may
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


async def answer(get: Get, path: str, decode: Callable[[bytes], Told]) -> Told:
    """What a server tells at a path, as JSON. Raises: `get`'s; ValueError naming the path."""
    data = await get(path)
    try:
        return decode(data)
    except msgspec.ValidationError as error:
        raise ValueError(f"{path} answers JSON in another form: {error}") from error
    except msgspec.DecodeError as error:
        raise ValueError(f"{path} answers {content(data)}") from error


def content(data: bytes) -> str:
    """What a server sends in the place of JSON."""
    if data.startswith(lookalike.GZIP):
        return "JSON compressed by gzip, which was not asked for: is a proxy between?"
    really = lookalike.what_it_is(data[: lookalike.HEAD])
    if really in (None, lookalike.JSON):
        return f"what is no JSON: {one_line(data.decode(errors='replace'))}"
    return f"no JSON but {str(really).partition(':')[0]}: is it the engine's own address?"


def refusal(path: str, url: str, response: Response) -> str:
    """What a server means by an HTTP status other than 200, in one line."""
    status = response.status
    if status in (401, 403):
        return f"{path}: it refuses the key (HTTP {status}): set {KEY} to the server's own"
    if target := response.headers.get(b"location"):
        place = one_line(target.decode(errors="replace"))
        return f"{path}: HTTP {status}: it redirects to {place}: name that server in --endpoint"
    try:
        said = json.loads(response.body)
        said = said.get("error", said.get("detail", said))
        said = said.get("message", said) if isinstance(said, dict) else said
    except (ValueError, AttributeError):
        said = response.body.decode(errors="replace")
    hint = ""
    if status == 404 and url.endswith("/v1"):
        hint = " (the URL is the server's root, without /v1)"
    elif status == 404:
        hint = " (a gateway must pass this on as well: name the engine's own address)"
    return f"{path}: HTTP {status}: {one_line(str(said))}{hint}"


def one_line(said: str) -> str:
    """What a server said, short and in one line."""
    return " ".join(said.split())[:QUOTED]
