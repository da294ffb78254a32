"""The nouns every engine speaks. Of this project it imports the engine's finish reasons alone.

An engine sees token ids only. Each token it samples leaves it in a `Delta`; a `Delta` carries the
new ids alone, and never a stop id: `finish="stop"` stands for the stop id that ended the answer.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from ref_dsinfer.sequence import Finish as Finish

FINISHES: tuple[Finish, ...] = get_args(Finish)
Scenario = Literal["offline", "server", "interactive"]
# What an option's value is: a number is whole, a count above 0, a share above 0 and at most 1.
Kind = Literal["text", "number", "count", "share", "switch", "urls"]
Group = Literal["engine", "processes", "servers"]


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. Temperature 0 is greedy: the lowest id wins a tie."""

    temperature: float = 0.0
    top_p: float = 1.0


@dataclass(frozen=True)
class Request:
    """One prompt to answer."""

    id: int  # LoadGen's query id, or the row of the data set; unique within a run
    prompt_ids: tuple[int, ...]  # template applied, BOS included
    max_new_tokens: int  # tokens
    stop_ids: frozenset[int]  # any of these ends the answer
    sampling: Sampling = Sampling()
    row: int | None = None  # of the data set, from 0

    @property
    def name(self) -> str:
        """What messages call it: people know rows, not LoadGen's query ids."""
        if self.row is None:
            return f"request {self.id}"
        return f"row {self.row}" if self.row == self.id else f"row {self.row} (request {self.id})"


@dataclass(frozen=True)
class Delta:
    """What an engine has sampled for one request since the last delta."""

    token_ids: tuple[int, ...]  # new ids only, stop id excluded; may be empty with `finish`
    finish: Finish | None  # set on the last delta of a request, and only there
    at_ns: int  # time.monotonic_ns() when the engine had them


@dataclass(frozen=True)
class Completion:
    """A whole answer. `token_ids` may be empty: the model may stop at once."""

    request_id: int
    token_ids: tuple[int, ...]  # stop id excluded
    finish: Finish
    first_ns: int  # time.monotonic_ns() of the first delta
    last_ns: int  # time.monotonic_ns() of the last delta


@dataclass(frozen=True)
class Reuse:
    """What prompts have taken from a cache of the prefixes of earlier ones; None: not known."""

    enabled: bool | None  # whether the engine keeps prefixes
    cached_tokens: int | None = None  # of all prompts that were answered
    largest: int | None = None  # tokens of one prompt, at most
    block_size: int = 1  # tokens that are reused together


NO_REUSE = Reuse(enabled=False, cached_tokens=0, largest=0)


@dataclass(frozen=True)
class Option:
    """How a field of EngineConfig is asked for on the command line.

    The parser, the check that an engine takes it, the engine's own argument and the options page
    are made from this.
    """

    flag: str
    help: str  # the default is added to it
    kind: Kind = "text"
    unset: str = "the engine's own"  # what None means
    metavar: str | None = None
    choices: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()  # as users of vLLM and SGLang know it
    common: bool = False  # every engine takes it
    engines: Mapping[str, str] = field(default_factory=dict)  # that take it: their own name or ""
    group: Group = "engine"
    loadgen: bool = False  # of the scripts that measure only
    exclusive: str | None = None  # of options with the same word here, only one may be given


def option(default: Any, flag: str, help: str, **more: Any) -> Any:
    """A field of EngineConfig that an option of the command line sets."""
    return field(default=default, metadata={"option": Option(flag, help, **more)})


def _own(vllm: str, sglang: str) -> dict[str, str]:
    return {"vllm": vllm, "sglang": sglang}


@dataclass(frozen=True)
class EngineConfig:
    """What an engine needs to start, in words all engines share; None leaves it to the engine."""

    model: str  # local directory; of a server that runs already, its tokenizer's
    device: str = option(
        "auto",
        "--device",
        "where it runs",
        choices=("auto", "cpu", "cuda"),
        common=True,
        engines={"sglang": "device"},
    )
    dtype: str = option(
        "auto",
        "--dtype",
        "of activations; auto: bfloat16, but float32 on CPUs that can't multiply it",
        choices=("auto", "bfloat16", "float32"),
        common=True,
        engines=_own("dtype", "dtype"),
    )
    max_model_len: int | None = option(
        None,
        "--max-model-len",
        "longest prompt and answer together, in tokens",
        kind="count",
        unset="what the model allows",
        metavar="TOKENS",
        aliases=("--context-length",),
        common=True,
        engines=_own("max_model_len", "context_length"),
    )
    max_running: int | None = option(
        None,
        "--max-running",
        "sequences decoded at once, by each server",
        kind="count",
        aliases=("--max-num-seqs", "--max-running-requests"),
        common=True,
        engines=_own("max_num_seqs", "max_running_requests"),
    )
    attention: str = option(
        "tp",
        "--attention",
        "each process has a part of the attention heads (tp), or all heads for requests of its own,"
        " and a KV cache for these (dp)",
        choices=("tp", "dp"),
        engines={"pytorch": ""},
    )
    gemm: Literal["bf16", "fp8"] | None = option(
        None,
        "--gemm",
        "what block-fp8 weights are multiplied with: bf16 activations (W8A16), or activations"
        " rounded to fp8 as well (W8A8)",
        choices=("bf16", "fp8"),
        unset="bf16",
        engines={"pytorch": ""},
    )
    seed: int = option(
        0,
        "--seed",
        "of sampling",
        kind="number",
        common=True,
        engines=_own("seed", "random_seed"),
    )
    stall_timeout: float = option(
        1800.0,
        "--stall-timeout",
        "end the run when no token of any request has come for so long; offline, where answers come"
        " whole, no answer. A warning comes after 30",
        kind="count",
        metavar="SECONDS",
        common=True,
    )
    speculative: bool = option(
        False,
        "--speculative",
        "decode with the model's own MTP head, three steps; the rules allow it in --mode"
        " interactive only",
        kind="switch",
        engines={"pytorch": ""} | _own("", "speculative_algorithm"),
        loadgen=True,
    )
    tensor_parallel: int = option(
        1,
        "--tensor-parallel",
        "processes that share each layer",
        kind="count",
        aliases=("--tensor-parallel-size", "--tp-size", "-tp"),
        engines=_own("tensor_parallel_size", "tp_size"),
        group="processes",
    )
    pipeline_parallel: int = option(
        1,
        "--pipeline-parallel",
        "processes that share the layers among them",
        kind="count",
        aliases=("--pipeline-parallel-size", "--pp-size", "-pp"),
        engines=_own("pipeline_parallel_size", "pp_size"),
        group="processes",
    )
    data_parallel: int = option(
        1,
        "--data-parallel",
        "replicas of the model, or of its attention",
        kind="count",
        aliases=("--data-parallel-size", "--dp-size", "-dp"),
        engines=_own("data_parallel_size", "dp_size"),
        group="processes",
    )
    attention_dp: int = option(
        1,
        "--attention-dp",
        "data-parallel groups of the --tensor-parallel processes, each with whole attention",
        kind="count",
        engines={"sglang": "attn_dp_size"},
        group="processes",
    )
    expert_parallel: bool = option(
        False,
        "--expert-parallel",
        "give each process whole experts, not a slice of each",
        kind="switch",
        aliases=("--enable-expert-parallel",),
        engines=_own("enable_expert_parallel", "ep_size"),
        group="processes",
    )
    memory_share: float | None = option(
        None,
        "--memory-share",
        "fraction of device memory for weights and KV cache",
        kind="share",
        metavar="FRACTION",
        aliases=("--gpu-memory-utilization", "--mem-fraction-static"),
        engines=_own("gpu_memory_utilization", "mem_fraction_static"),
        group="processes",
    )
    kv_dtype: str | None = option(
        None,
        "--kv-dtype",
        "type of the KV cache by the engine's own name, e.g. fp8",
        metavar="TYPE",
        aliases=("--kv-cache-dtype",),
        engines=_own("kv_cache_dtype", "kv_cache_dtype"),
        group="processes",
    )
    quantization: str | None = option(
        None,
        "--quantization",
        "of the weights by the engine's own name, e.g. fp8",
        unset="what the model's config.json says",
        metavar="NAME",
        engines=_own("quantization", "quantization"),
        group="processes",
    )
    attention_backend: str | None = option(
        None,
        "--attention-backend",
        "attention kernels by the engine's own name",
        metavar="NAME",
        engines={"sglang": "attention_backend"},
        group="processes",
    )
    deterministic: bool = option(
        False,
        "--deterministic",
        "the same answer whatever else is in the batch, at some cost",
        kind="switch",
        aliases=("--enable-deterministic-inference",),
        engines={"sglang": "enable_deterministic_inference"},
        group="processes",
    )
    eager: bool = option(
        False,
        "--eager",
        "no compilation and no CUDA graphs: starts sooner",
        kind="switch",
        aliases=("--enforce-eager",),
        engines=_own("enforce_eager", "cuda_graph_backend_decode"),
        group="processes",
        exclusive="speed",
    )
    compile: bool = option(
        False,
        "--compile",
        "torch.compile, also where it is not the default",
        kind="switch",
        aliases=("--enable-torch-compile",),
        engines=_own("", "enable_torch_compile"),
        group="processes",
        exclusive="speed",
    )
    start_timeout: float = option(
        3600.0,
        "--start-timeout",
        "for loading and warming up",
        kind="count",
        metavar="SECONDS",
        engines=_own("", ""),
        group="processes",
    )
    endpoints: tuple[str, ...] = option(
        (),
        "--endpoint",
        "use these servers, all of them as one system, instead of starting an engine; a key goes"
        " into $MLPERF_ENDPOINT_KEY. --model then names the tokenizer's directory",
        kind="urls",
        metavar="URL[,URL...]",
        engines=_own("", ""),
        group="servers",
    )
    served_model: str | None = option(
        None,
        "--served-model",
        "what the servers call the model",
        unset="the name of --model",
        metavar="NAME",
        aliases=("--served-model-name",),
        group="servers",  # no engine takes it by itself, but --endpoint
    )
    coalesce: bool = False  # True where nobody reads single-token times: deltas may be long
    options: Mapping[str, str] = field(default_factory=dict)  # the engine's own, by its own names
    log: Path | None = None  # file for what the engine's own processes say; None: not kept


OPTIONS: Mapping[str, Option] = {
    one.name: one.metadata["option"] for one in fields(EngineConfig) if "option" in one.metadata
}


class Backend(ABC):
    """One engine. `start`, `stream` and `close` run on one event loop.

    Raises: whatever stops an engine is raised from `start` or from every open `stream`.
    """

    def __init__(self, config: EngineConfig) -> None:
        self.config = config

    @property
    def leads(self) -> bool:
        """Whether this process takes requests; under torchrun only rank 0 does."""
        return True

    def follow(self) -> None:
        """Serve the leader's requests until it closes. Only where `leads` is False."""
        raise NotImplementedError(f"{type(self).__name__} runs in one process")

    @abstractmethod
    async def start(self) -> None:
        """Load the model; return once requests can be answered."""

    def effective(self) -> Mapping[str, Any]:
        """What the started engine runs with, in its own words, as JSON has it."""
        return {}

    async def reuse(self) -> Reuse:
        """What the requests answered so far have taken from earlier ones' prefixes."""
        return Reuse(enabled=None)

    async def detokenize(self, ids: Sequence[int]) -> str | None:
        """The text of ids by a tokenizer of the engine's own, special tokens included; None where
        it has none, or does not tell."""
        return None

    @abstractmethod
    def stream(self, request: Request) -> AsyncIterator[Delta]:
        """Answer one request. Closing the iterator early aborts it and frees its place."""

    def place(self, request: Request) -> str:
        """Where an open request is answered, as messages about it begin; empty where there is but
        one place."""
        return ""

    @abstractmethod
    async def close(self) -> None:
        """End every process and free every resource of the engine. Safe to call twice."""


@dataclass(frozen=True)
class BackendSpec:
    """A row of the registry."""

    name: str
    target: str  # "module:Class", imported only when the backend is used
    scenarios: tuple[Scenario, ...]
    torchrun: bool  # started by the _mpi scripts, one process a rank
    attached: str | None = None  # the class that uses servers which run already
    hidden: bool = False  # a test aid, not offered in --help
