"""One server of `endpoints.py`: what is asked of it, and what it has to do and has done."""

import asyncio
from collections.abc import Sequence

import msgspec

from backends.dialect import Served, refusal
from backends.http_client import Client, ExchangeError
from backends.types import Request
from errors import EngineError

CHECK_S = 30.0  # for checks that a server answers at once, unless it is busy with others' requests


class _Text(msgspec.Struct):
    """A response of /detokenize."""

    text: str | None = None  # SGLang's name for it
    prompt: str | None = None  # vLLM's


_decode_text = msgspec.json.Decoder(_Text).decode


class Endpoint:
    """One server."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.open = 0  # requests
        self.outstanding = 0  # tokens of open requests, as far as they are expected
        self.sent = 0  # requests in total
        self.answers = self.answer_tokens = 0
        self.answer_s = 0.0  # of all its answers, from when their requests were sent
        self.moved = 0  # requests that others answered, since it was lost
        self.lost = ""  # why it can't be used any more
        self.served: Served | None = None

    @property
    def pace(self) -> float:
        """Seconds that an answer takes for each of its tokens; 0 where that is not known yet."""
        return self.answer_s / self.answer_tokens if self.answer_tokens else 0.0

    def forget(self) -> None:
        """Begin to count from here."""
        self.sent = self.answers = self.answer_tokens = 0
        self.answer_s = 0.0

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
        """The text of ids by the server's tokenizer; None where that can't be had."""
        assert self.served
        body = {"model": self.served.name, "tokens": ids, "skip_special_tokens": False}
        try:
            async with asyncio.timeout(CHECK_S):
                response = await self.client.fetch("/detokenize", msgspec.json.encode(body))
            decoded = _decode_text(response.body) if response.status == 200 else _Text()
        except (ExchangeError, ValueError, TimeoutError):
            return None
        return decoded.prompt if decoded.text is None else decoded.text

    def error(self, message: str, request: Request | None = None) -> EngineError:
        """The error for a failure of this server, or of one request to it."""
        which = f"{request.name}: " if request and request.id >= 0 else ""
        return EngineError(f"endpoint {self.client.url}: {which}{message}")
