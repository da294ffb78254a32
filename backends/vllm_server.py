"""`vllm serve`, started by others.

`/v1/completions` takes token ids and, asked by `return_token_ids`, gives those it sampled, the stop
id among them. (`/inference/v1/generate` saves the server the text, but answers only where it was
started with --enable-scale-out.) An event may hold several ids; a failure after the headers comes
as an event. Tried on vLLM 0.32.
"""

from typing import Any, ClassVar, get_args

import msgspec

from backends.endpoints import Dialect, Endpoints, Get, Part, Read, Served, quoted
from backends.types import EngineConfig, Finish, Request

FINISHES = get_args(Finish)


class _Version(msgspec.Struct):
    version: str = "unknown"


class _Model(msgspec.Struct):
    id: str
    root: str | None = None
    max_model_len: int | None = None


class _Models(msgspec.Struct):
    data: list[_Model]


class _Choice(msgspec.Struct):
    finish_reason: str | None = None
    token_ids: list[int] | None = None


class _Answer(msgspec.Struct):
    choices: list[_Choice] = []
    error: Any = None


_decode_models = msgspec.json.Decoder(_Models).decode
_decode_answer = msgspec.json.Decoder(_Answer).decode


class VllmDialect(Dialect):
    """The OpenAI completions API with vLLM's own fields."""

    generate: ClassVar[str] = "/v1/completions"

    async def describe(self, get: Get) -> list[Served]:
        version = msgspec.json.decode(await get("/version"), type=_Version).version
        models = _decode_models(await get("/v1/models")).data
        return [
            Served(model.id, model.root or model.id, model.max_model_len, version)
            for model in models
        ]

    def body(self, request: Request, model: str, whole: bool) -> bytes:
        """What is not said here is left to the server's generation_config.json, so all is said."""
        return msgspec.json.encode(
            {
                "model": model,
                "prompt": request.prompt_ids,
                "max_tokens": request.max_new_tokens,
                "stop_token_ids": sorted(request.stop_ids),
                "ignore_eos": True,  # else the server's own stop ids end answers too
                "temperature": request.sampling.temperature,
                "top_p": request.sampling.top_p,
                "top_k": 0,
                "min_p": 0,
                "repetition_penalty": 1,
                "presence_penalty": 0,
                "frequency_penalty": 0,
                "return_token_ids": True,
                "stream": not whole,
            }
        )

    def reader(self, request: Request) -> Read:
        return read


def read(data: bytes) -> Part:
    """An event, or a whole answer. Errors: ValueError."""
    answer = _decode_answer(data)
    if answer.error is not None:
        message = answer.error.get("message") if isinstance(answer.error, dict) else None
        raise ValueError(quoted(str(message or answer.error)))
    if not answer.choices:
        return Part((), None)
    choice = answer.choices[0]
    if choice.token_ids is None:
        raise ValueError(
            "it gives text but no token ids; MLPerf counts the tokens that were sampled, and text"
            " encoded again has other counts (a newer vLLM gives them)"
        )
    if choice.finish_reason not in (None, *FINISHES):
        raise ValueError(f"it has ended the answer by {choice.finish_reason!r}")
    return Part(choice.token_ids, choice.finish_reason)  # type: ignore[arg-type]


class VllmServer(Endpoints):
    """vLLM servers that run already; vLLM need not be installed here."""

    def __init__(self, config: EngineConfig) -> None:
        super().__init__(config, VllmDialect())
