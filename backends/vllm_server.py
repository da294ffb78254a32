"""Running `vllm serve` servers.

`/v1/completions` takes token ids and with `return_token_ids` returns those that were sampled, the
stop id among them. (`/inference/v1/generate` would save the server detokenization, but needs one
that was started with --enable-scale-out.) An event may hold several ids; a failure after the
headers arrives as an event. Tested with vLLM 0.32.
"""

import re
from collections.abc import Iterator
from typing import Any, ClassVar

import msgspec

from backends.dialect import Dialect, Get, Part, PrefixCache, Read, Served, answer, one_line
from backends.endpoints import Endpoints
from backends.types import FINISHES, EngineConfig, Request, Stats


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


class _Cached(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens_details: _Cached | None = None


class _Answer(msgspec.Struct):
    choices: list[_Choice] = []
    error: Any = None
    usage: _Usage | None = None


# A line of /metrics: name, labels, value.
_METRIC = re.compile(r"(vllm:[a-z_]+)(?:\{(.*)\})? ([-+0-9.eE]+)\Z")
_LABEL = re.compile(r'(\w+)="([^"]*)"')
_HITS = ("vllm:prefix_cache_hits_total", "vllm:external_prefix_cache_hits_total")  # tokens

_STATS = (  # running, waiting, use of the KV cache as a fraction, preemptions so far
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:kv_cache_usage_perc",
    "vllm:num_preemptions_total",
)

_decode_version = msgspec.json.Decoder(_Version).decode
_decode_models = msgspec.json.Decoder(_Models).decode
_decode_answer = msgspec.json.Decoder(_Answer).decode


class VllmDialect(Dialect):
    """The OpenAI completions API with vLLM's own fields."""

    generate: ClassVar[str] = "/v1/completions"

    async def describe(self, get: Get) -> list[Served]:
        version = (await answer(get, "/version", _decode_version)).version
        models = (await answer(get, "/v1/models", _decode_models)).data
        return [
            Served(model.id, model.root or model.id, model.max_model_len, version)
            for model in models
        ]

    async def prefix_cache(self, get: Get) -> PrefixCache:
        """From /metrics: tokens of all requests, and of all engines behind one address."""
        hits, enabled, block = None, None, 1
        for name, labels, value in _metrics(await get("/metrics")):
            if name in _HITS:
                hits = (hits or 0) + int(float(value))
            elif name == "vllm:cache_config_info":
                known = dict(_LABEL.findall(labels or ""))
                enabled = {"True": True, "False": False}.get(known.get("enable_prefix_caching", ""))
                if known.get("block_size", "").isdecimal():
                    block = int(known["block_size"])
        return PrefixCache(enabled, hits, block, "--no-enable-prefix-caching")

    async def stats(self, get: Get) -> Stats:
        """From /metrics, where each engine behind the address has its own numbers."""
        values: dict[str, list[float]] = {name: [] for name in _STATS}
        for name, _, value in _metrics(await get("/metrics")):
            if name in values:
                values[name].append(float(value))
        running, waiting, use, preemptions = (values[name] for name in _STATS)
        return Stats(
            int(sum(running)) if running else None,
            int(sum(waiting)) if waiting else None,
            sum(use) / len(use) if use else None,
            int(sum(preemptions)) if preemptions else None,
        )

    def body(self, request: Request, model: str, whole: bool) -> bytes:
        """Sets every parameter, since generation_config.json decides those that are missing."""
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
    """Parse an event, or a whole answer. Raises: ValueError."""
    event = _decode_answer(data)
    if event.error is not None:
        message = event.error.get("message") if isinstance(event.error, dict) else None
        raise ValueError(one_line(str(message or event.error)))
    if not event.choices:
        return Part((), None)
    choice = event.choices[0]
    if choice.token_ids is None:
        raise ValueError(
            "the response has text but no token ids; MLPerf counts the tokens that were sampled,"
            " and encoding the text again gives other counts (use a newer vLLM)"
        )
    if choice.finish_reason not in (None, *FINISHES):
        raise ValueError(f"ended the answer with finish reason {choice.finish_reason!r}")
    details = event.usage and event.usage.prompt_tokens_details
    cached = details.cached_tokens if details else None
    return Part(choice.token_ids, choice.finish_reason, cached)


def _metrics(page: bytes) -> Iterator[tuple[str, str | None, str]]:
    """The metrics of a page: name, labels, value."""
    for line in page.decode(errors="replace").splitlines():
        if match := _METRIC.match(line):
            name, labels, value = match.groups()
            yield name, labels, value


class VllmServer(Endpoints):
    """Running vLLM servers; vLLM need not be installed here."""

    def __init__(self, config: EngineConfig) -> None:
        super().__init__(config, VllmDialect())
