"""SGLang's native HTTP API: `/generate` takes token ids and returns those that it sampled.

For running servers, and for the one that `backends/sglang.py` starts. The stop id is the last of an
answer's ids. A server streams either new ids or the whole answer so far, depending on how it was
started (`--incremental-streaming-output`). Both come with a count of all ids, which tells the two
apart and shows that none is missing. SGLang's router forwards the answers of several servers, but
only the model and name of one of them. Tested with SGLang 0.5.23 and sglang-router 0.3.2.
"""

from typing import Any, ClassVar

import msgspec

from backends.dialect import Dialect, Get, Part, PrefixCache, Read, Served, answer, one_line
from backends.endpoints import Endpoints
from backends.options import vocabulary_size
from backends.types import FINISHES, EngineConfig, Finish, Request, Stats
from errors import EngineError


class _Info(msgspec.Struct):
    model_path: str
    served_model_name: str | None = None
    max_req_input_len: int | None = None
    disable_radix_cache: bool | None = None
    version: str = "unknown"


class _Ready(msgspec.Struct):
    healthy_workers: int
    total_workers: int


class _Load(msgspec.Struct):
    num_running_reqs: int
    num_waiting_reqs: int
    token_usage: float  # fraction of the KV cache


class _Loads(msgspec.Struct):
    loads: list[_Load]  # of each data-parallel rank


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
_decode_ready = msgspec.json.Decoder(_Ready).decode
_decode_loads = msgspec.json.Decoder(_Loads).decode
_decode_answer = msgspec.json.Decoder(_Answer).decode


class SglangDialect(Dialect):
    """SGLang's native API, for the model of the directory `model`."""

    generate: ClassVar[str] = "/generate"

    def __init__(self, model: str) -> None:
        self._vocabulary = vocabulary_size(model)

    async def describe(self, get: Get) -> list[Served]:
        """The length is SGLang's limit for prompts, which is below its context length and its KV
        cache's size: that many tokens of prompt and answer together always fit."""
        try:
            info, behind = await answer(get, "/server_info", _decode_info), None
        except EngineError:  # the router has these
            info = await answer(get, "/get_model_info", _decode_info)
            behind = (await answer(get, "/readiness", _decode_ready)).total_workers
        name = info.served_model_name or info.model_path
        version = info.version if behind is None else f"SGLang's router, servers: {behind}"
        return [Served(name, info.model_path, info.max_req_input_len, version, behind)]

    async def check(self, get: Get, served: Served) -> None:
        """A router is healthy as long as one of its servers is; all have to be."""
        if served.behind is None:
            await super().check(get, served)
            return
        ready = await answer(get, "/readiness", _decode_ready)
        if ready.healthy_workers < served.behind:
            healthy = f"only {ready.healthy_workers} of {served.behind}"
            raise ValueError(f"{healthy} servers behind the router are healthy")

    async def prefix_cache(self, get: Get) -> PrefixCache:
        """Hits are not counted here: each answer reports those of its prompt."""
        info = await answer(get, "/server_info", _decode_info)
        off = info.disable_radix_cache
        return PrefixCache(None if off is None else not off, advice="--disable-radix-cache")

    async def stats(self, get: Get) -> Stats:
        """Without preemptions: SGLang counts its retractions only with --enable-metrics."""
        loads = (await answer(get, "/v1/loads?include=core", _decode_loads)).loads
        return Stats.total(
            [Stats(one.num_running_reqs, one.num_waiting_reqs, one.token_usage) for one in loads]
        )

    def body(self, request: Request, model: str, whole: bool) -> bytes:
        """Sets every parameter, since generation_config.json decides those that are missing.

        Raises: ValueError for ids that the model does not have: they would crash SGLang.
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
                    # this ignores the ids above too, so only where there are none
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
                raise ValueError("the response has no output_ids with their count: is this SGLang?")
            total = meta.completion_tokens
            if count + len(ids) == total:
                new = ids
            elif len(ids) >= max(count, total):  # the whole answer; it may be ahead of its count
                new = ids[count:]
            else:
                raise ValueError(f"of {total} tokens it sent {count} and then {len(ids)} ids")
            count += len(new)
            if meta.finish_reason is None:
                return Part(new, None)
            if count != total:
                raise ValueError(f"the answer has {count} ids, but a count of {total}")
            return Part(new, _finish(meta.finish_reason, request), meta.cached_tokens)

        return read


class SglangServer(Endpoints):
    """Running SGLang servers; SGLang need not be installed here."""

    def __init__(self, config: EngineConfig) -> None:
        super().__init__(config, SglangDialect(config.model))


def _finish(reason: _Finish, request: Request) -> Finish:
    """How an answer ended. Raises: ValueError where the request does not allow that.

    SGLang also stops at the EOS ids of the model's own configuration, and reports a stop where its
    logits became NaN.
    """
    if reason.type == "stop" and reason.matched not in request.stop_ids:
        raise ValueError(f"stopped at {reason.matched!r}, which is no stop id of the request")
    if reason.type not in FINISHES:
        message = f": {one_line(reason.message)}" if reason.message else ""
        raise ValueError(f"ended the answer with finish reason {reason.type!r}{message}")
    return reason.type


def _message(error: Any) -> str:
    message = error.get("message") if isinstance(error, dict) else None
    return one_line(str(message or error))
