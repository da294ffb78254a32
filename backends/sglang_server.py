"""SGLang's own HTTP interface: `/generate` takes token ids and gives those that it sampled.

Read here from servers that others have started, and from the one of `backends/sglang.py`. The stop
id is the last of an answer's ids. A server streams either what is new or the whole answer so far,
as it was started (`--incremental-streaming-output`), and counts the ids in either case: the count
tells which, and that none is missing. Tried on SGLang 0.5.23.
"""

from typing import Any, ClassVar

import msgspec

from backends.dialect import Dialect, Get, Part, Prefixes, Read, Served, answer, one_line
from backends.endpoints import Endpoints
from backends.options import vocabulary_size
from backends.types import FINISHES, EngineConfig, Finish, Request
from errors import EngineError


class _Info(msgspec.Struct):
    model_path: str
    served_model_name: str | None = None
    max_req_input_len: int | None = None
    disable_radix_cache: bool | None = None
    version: str = "unknown"


class _Finish(msgspec.Struct):
    type: str
    matched: Any = None  # the stop id
    message: str | None = None


class _Meta(msgspec.Struct):
    completion_tokens: int
    cached_tokens: int | None = None
    finish_reason: _Finish | None = None


class _Answer(msgspec.Struct):
    output_ids: list[int] | None = None
    meta_info: _Meta | None = None
    error: Any = None


_decode_info = msgspec.json.Decoder(_Info).decode
_decode_answer = msgspec.json.Decoder(_Answer).decode


class SglangDialect(Dialect):
    """SGLang's native interface, for the model that `model`, a directory, describes."""

    generate: ClassVar[str] = "/generate"

    def __init__(self, model: str) -> None:
        self._vocabulary = vocabulary_size(model)

    async def describe(self, get: Get) -> list[Served]:
        """The longest prompt that SGLang takes is shorter than its context, and than its cache; so
        much of prompt and answer together always fits."""
        try:
            info = await answer(get, "/server_info", _decode_info)
        except EngineError:  # SGLang's router asks one of its servers
            info = await answer(get, "/get_model_info", _decode_info)
        name = info.served_model_name or info.model_path
        return [Served(name, info.model_path, info.max_req_input_len, info.version)]

    async def prefixes(self, get: Get) -> Prefixes:
        """Each answer tells how much of its prompt was in the cache."""
        info = await answer(get, "/server_info", _decode_info)
        off = info.disable_radix_cache
        return Prefixes(None if off is None else not off, advice="--disable-radix-cache")

    def body(self, request: Request, model: str, whole: bool) -> bytes:
        """What is not said here is left to the model's generation_config.json, so all is said.

        Raises: ValueError for ids that the model does not have: SGLang would die of them.
        """
        if self._vocabulary and request.prompt_ids:
            for id_ in (min(request.prompt_ids), max(request.prompt_ids)):
                if not 0 <= id_ < self._vocabulary:
                    raise ValueError(
                        f"the prompt holds id {id_}; the model has {self._vocabulary} ids"
                    )
        return msgspec.json.encode(
            {
                "input_ids": request.prompt_ids,
                "sampling_params": {
                    "max_new_tokens": request.max_new_tokens,
                    "stop_token_ids": sorted(request.stop_ids),
                    # SGLang then ignores the ids above too, so only where there are none
                    "ignore_eos": not request.stop_ids,
                    "temperature": request.sampling.temperature,
                    "top_p": request.sampling.top_p,
                    "top_k": -1,
                    "min_p": 0,
                    "repetition_penalty": 1,
                    "presence_penalty": 0,
                    "frequency_penalty": 0,
                },
                "stream": not whole,
            }
        )

    def reader(self, request: Request) -> Read:
        count = 0

        def read(data: bytes) -> Part:
            nonlocal count
            event = _decode_answer(data)
            if event.error is not None:
                raise ValueError(_message(event.error))
            ids, meta = event.output_ids, event.meta_info
            if ids is None or meta is None:
                raise ValueError("it gives no output_ids with their count, as SGLang does")
            told = meta.completion_tokens
            if count + len(ids) == told:
                new = ids
            elif len(ids) >= max(count, told):  # the whole answer; it may be ahead of its count
                new = ids[count:]
            else:
                raise ValueError(f"of {told} tokens it has given {count} and then {len(ids)} ids")
            count += len(new)
            if meta.finish_reason is None:
                return Part(new, None)
            if count != told:
                raise ValueError(f"its answer has {count} ids, but it counts {told}")
            return Part(new, _finish(meta.finish_reason, request), meta.cached_tokens)

        return read


class SglangServer(Endpoints):
    """SGLang servers that run already; SGLang need not be installed here."""

    def __init__(self, config: EngineConfig) -> None:
        super().__init__(config, SglangDialect(config.model))


def _finish(reason: _Finish, request: Request) -> Finish:
    """How an answer has ended. Raises: ValueError where that is not as the request wants it.

    SGLang also stops at the end-of-sequence ids of the model's own configuration, and says that it
    has stopped where its numbers have become NaN.
    """
    if reason.type == "stop" and reason.matched not in request.stop_ids:
        raise ValueError(
            f"it has stopped at {reason.matched!r}, which is no stop id of the request"
        )
    if reason.type not in FINISHES:
        said = f": {one_line(reason.message)}" if reason.message else ""
        raise ValueError(f"it has ended the answer by {reason.type!r}{said}")
    return reason.type


def _message(error: Any) -> str:
    message = error.get("message") if isinstance(error, dict) else None
    return one_line(str(message or error))
