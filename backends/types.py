"""The interface of all engines. Imports nothing of this project but the finish reasons.

An engine sees token ids only. Each token it samples leaves it in a `Delta`; a `Delta` carries the
new ids alone, and never a stop id: `finish="stop"` stands for the stop id that ended the answer.

Requests, deltas and completions are named tuples, as there is one for each sample or token: frozen
dataclasses take several times as long to make.
"""

from abc import ABC, abstractmethod
from array import array
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from ref_dsinfer.sequence import Finish as Finish

FINISHES: tuple[Finish, ...] = get_args(Finish)
TOKEN = "i"  # the type code of int32 in arrays, LoadGen's type of a token id
Scenario = Literal["offline", "server", "interactive"]
# Of an option's value: a number is whole, a count above 0, a fraction above 0 and at most 1.
Kind = Literal["text", "number", "count", "fraction", "switch", "urls"]
Group = Literal["engine", "processes", "servers"]


@dataclass(frozen=True)
class Sampling:
    """How the next token is sampled. Temperature 0 is greedy: the lowest id wins a tie."""

    temperature: float = 0.0
    top_p: float = 1.0


class Request(NamedTuple):
    """One prompt to answer."""

    id: int  # LoadGen's query id, or the row of the data set; unique within a run
    prompt_ids: tuple[int, ...]  # with the chat template applied, BOS included
    max_new_tokens: int  # tokens
    stop_ids: frozenset[int]  # any of these ends the answer
    sampling: Sampling = Sampling()
    row: int | None = None  # of the data set, from 0

    @property
    def name(self) -> str:
        """Its name in messages, by row if it has one: people don't know LoadGen's query ids."""
        if self.row is None:
            return f"request {self.id}"
        return f"row {self.row}" if self.row == self.id else f"row {self.row} (request {self.id})"


class Delta(NamedTuple):
    """The tokens that an engine has sampled for one request since the last delta."""

    token_ids: tuple[int, ...]  # new ids only, stop id excluded; may be empty with `finish`
    finish: Finish | None  # set on the last delta of a request, and only there
    at_ns: int  # time.monotonic_ns() when they were there


class Completion(NamedTuple):
    """A whole answer. `token_ids` may be empty: the model may stop at once."""

    request_id: int
    token_ids: array | memoryview  # of int32; stop id excluded
    finish: Finish
    first_ns: int  # time.monotonic_ns() of the first delta
    last_ns: int  # time.monotonic_ns() of the last delta


@dataclass(frozen=True)
class Reuse:
    """Prompt tokens that came from a prefix cache instead of being computed; None: unknown."""

    enabled: bool | None  # whether the engine has a prefix cache
    cached_tokens: int | None = None  # of all answered prompts together
    largest: int | None = None  # tokens of a single prompt
    block_size: int = 1  # tokens that are cached together


@dataclass(frozen=True)
class Stats:
    """What an engine is doing at a moment, as far as it tells; None: not known."""

    running: int | None = None  # requests
    waiting: int | None = None  # requests
    cache_use: float | None = None  # fraction of the KV cache that is in use
    preemptions: int | None = None  # since the engine's start

    @classmethod
    def total(cls, parts: Sequence["Stats"]) -> "Stats":
        """Of several engines together: what one of them does not tell is not known.

        Their cache use is the mean.
        """

        def values(name: str) -> list[Any]:
            known = [getattr(part, name) for part in parts]
            return [] if None in known else known

        counts = {
            name: sum(numbers)
            for name in ("running", "waiting", "preemptions")
            if (numbers := values(name))
        }
        uses = values("cache_use")
        return cls(cache_use=sum(uses) / len(uses) if uses else None, **counts)


NO_REUSE = Reuse(enabled=False, cached_tokens=0, largest=0)


@dataclass(frozen=True)
class Option:
    """The command line's option for a field of EngineConfig.

    From this the parser is made, the check that an engine supports the option, the engine's own
    argument, and the options page.
    """

    flag: str
    help: str  # without the default, which is added
    kind: Kind = "text"
    unset: str = "the engine's own"  # the meaning of None
    metavar: str | None = None
    choices: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()  # names that users of vLLM and SGLang know
    common: bool = False  # every engine supports it
    # That support it, with their own name of it or ""
    engines: Mapping[str, str] = field(default_factory=dict)
    group: Group = "engine"
    loadgen: bool = False  # of LoadGen's scripts only
    exclusive: str | None = None  # options with the same word exclude each other


def option(default: Any, flag: str, help: str, **more: Any) -> Any:
    """A field of EngineConfig that a command-line option sets."""
    return field(default=default, metadata={"option": Option(flag, help, **more)})


def _own(vllm: str, sglang: str) -> dict[str, str]:
    return {"vllm": vllm, "sglang": sglang}


@dataclass(frozen=True)
class EngineConfig:
    """What an engine is started with, in terms that all engines share; None: the engine's own."""

    model: str  # local directory; of a server that runs already, its tokenizer's
    device: str = option(
        "auto",
        "--device",
        "device to run on",
        choices=("auto", "cpu", "cuda"),
        common=True,
        engines={"sglang": "device"},
    )
    dtype: str = option(
        "auto",
        "--dtype",
        "data type of activations; auto: bfloat16, but float32 on CPUs that can't multiply it",
        choices=("auto", "bfloat16", "float32"),
        common=True,
        engines=_own("dtype", "dtype"),
    )
    max_model_len: int | None = option(
        None,
        "--max-model-len",
        "tokens of prompt and answer together, at most",
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
        "sequences that run at once, on each server",
        kind="count",
        aliases=("--max-num-seqs", "--max-running-requests"),
        common=True,
        engines=_own("max_num_seqs", "max_running_requests"),
    )
    attention: str = option(
        "tp",
        "--attention",
        "tensor-parallel attention (tp: each process has a part of the heads) or data-parallel"
        " attention (dp: each has all heads for its own requests, and a KV cache for these)",
        choices=("tp", "dp"),
        engines={"pytorch": ""},
    )
    gemm: Literal["bf16", "fp8"] | None = option(
        None,
        "--gemm",
        "activations that block-fp8 weights are multiplied with: bf16 (W8A16), or rounded to fp8"
        " as well (W8A8)",
        choices=("bf16", "fp8"),
        unset="bf16",
        engines={"pytorch": ""},
    )
    kernels: Literal["auto", "own", "flashinfer"] = option(
        "auto",
        "--kernels",
        "kernels of attention while decoding on GPUs: this project's own, or those of the package"
        " flashinfer, which is installed from requirements/flashinfer.txt; auto: own, as long as no"
        " GPU has shown flashinfer to be as right and faster",
        choices=("auto", "own", "flashinfer"),
        engines={"pytorch": ""},
    )
    seed: int = option(
        0,
        "--seed",
        "seed of sampling",
        kind="number",
        common=True,
        engines=_own("seed", "random_seed"),
    )
    stall_timeout: float = option(
        1800.0,
        "--stall-timeout",
        "end the run when no request has produced a token for this long (in offline mode, where"
        " answers come whole: when none has finished). Warns after 30 s",
        kind="count",
        metavar="SECONDS",
        common=True,
    )
    speculative: bool = option(
        False,
        "--speculative",
        "speculative decoding with the model's own MTP layer, three tokens a step; the rules allow"
        " it in --mode interactive only",
        kind="switch",
        engines={"pytorch": ""} | _own("", "speculative_algorithm"),
        loadgen=True,
    )
    tensor_parallel: int = option(
        1,
        "--tensor-parallel",
        "processes that each layer is split over",
        kind="count",
        aliases=("--tensor-parallel-size", "--tp-size", "-tp"),
        engines=_own("tensor_parallel_size", "tp_size"),
        group="processes",
    )
    pipeline_parallel: int = option(
        1,
        "--pipeline-parallel",
        "processes that the layers are distributed over",
        kind="count",
        aliases=("--pipeline-parallel-size", "--pp-size", "-pp"),
        engines=_own("pipeline_parallel_size", "pp_size"),
        group="processes",
    )
    data_parallel: int = option(
        1,
        "--data-parallel",
        "data-parallel size: replicas of the model, or of its attention",
        kind="count",
        aliases=("--data-parallel-size", "--dp-size", "-dp"),
        engines=_own("data_parallel_size", "dp_size"),
        group="processes",
    )
    attention_dp: int = option(
        1,
        "--attention-dp",
        "data-parallel attention: groups of the --tensor-parallel processes, each with all heads",
        kind="count",
        engines={"sglang": "attn_dp_size"},
        group="processes",
    )
    expert_parallel: bool = option(
        False,
        "--expert-parallel",
        "expert parallelism: each process has whole experts instead of a slice of each",
        kind="switch",
        aliases=("--enable-expert-parallel",),
        engines=_own("enable_expert_parallel", "ep_size"),
        group="processes",
    )
    memory_share: float | None = option(
        None,
        "--memory-share",
        "fraction of device memory for weights and KV cache",
        kind="fraction",
        metavar="FRACTION",
        aliases=("--gpu-memory-utilization", "--mem-fraction-static"),
        engines=_own("gpu_memory_utilization", "mem_fraction_static"),
        group="processes",
    )
    kv_dtype: str | None = option(
        None,
        "--kv-dtype",
        "data type of the KV cache, by the engine's own name, e.g. fp8",
        metavar="TYPE",
        aliases=("--kv-cache-dtype",),
        engines=_own("kv_cache_dtype", "kv_cache_dtype"),
        group="processes",
    )
    quantization: str | None = option(
        None,
        "--quantization",
        "quantization of the weights, by the engine's own name, e.g. fp8",
        unset="what the model's config.json says",
        metavar="NAME",
        engines=_own("quantization", "quantization"),
        group="processes",
    )
    attention_backend: str | None = option(
        None,
        "--attention-backend",
        "attention kernels, by the engine's own name",
        metavar="NAME",
        engines={"sglang": "attention_backend"},
        group="processes",
    )
    deterministic: bool = option(
        False,
        "--deterministic",
        "batch-invariant: the same answer whatever else is in the batch, at some cost",
        kind="switch",
        aliases=("--enable-deterministic-inference",),
        engines={"sglang": "enable_deterministic_inference"},
        group="processes",
    )
    eager: bool = option(
        False,
        "--eager",
        "no compilation and no CUDA graphs: starts faster",
        kind="switch",
        aliases=("--enforce-eager",),
        engines=_own("enforce_eager", "cuda_graph_backend_decode"),
        group="processes",
        exclusive="speed",
    )
    compile: bool = option(
        False,
        "--compile",
        "use torch.compile where it is not the default",
        kind="switch",
        aliases=("--enable-torch-compile",),
        engines=_own("", "enable_torch_compile"),
        group="processes",
        exclusive="speed",
    )
    start_timeout: float = option(
        3600.0,
        "--start-timeout",
        "limit for loading and warming up",
        kind="count",
        metavar="SECONDS",
        engines=_own("", ""),
        group="processes",
    )
    join: bool = option(
        False,
        "--join",
        "run this host's part of the engine, for the same command without this option on the first"
        " host; ends with that one",
        kind="switch",
        engines=_own("", ""),
        group="processes",
    )
    endpoints: tuple[str, ...] = option(
        (),
        "--endpoint",
        "use these running servers, all of them as one system, instead of starting an engine. Each"
        " address of a host name is a server; @FILE has a URL a line; may be repeated. The API key"
        " goes into $MLPERF_ENDPOINT_KEY. --model then names the tokenizer's directory",
        kind="urls",
        metavar="URL[,URL...]|@FILE",
        engines=_own("", ""),
        group="servers",
    )
    served_model: str | None = option(
        None,
        "--served-model",
        "name under which the servers serve the model",
        unset="the name of --model",
        metavar="NAME",
        aliases=("--served-model-name",),
        group="servers",  # no engine supports it but with --endpoint
    )
    coalesce: bool = False  # single-token times are not needed: deltas may hold many tokens
    failover: bool = False  # a server that is lost does not end the run, if there are others
    options: Mapping[str, str] = field(default_factory=dict)  # the engine's own, by its own names
    log: Path | None = None  # of the engine's own processes; None: not kept


OPTIONS: Mapping[str, Option] = {
    one.name: one.metadata["option"] for one in fields(EngineConfig) if "option" in one.metadata
}


class Backend(ABC):
    """One engine. `start`, `stream` and `close` run on one event loop.

    Whatever stops an engine is raised from `start`, or from every open `stream`.
    """

    def __init__(self, config: EngineConfig) -> None:
        self.config = config

    @property
    def leads(self) -> bool:
        """Whether this process takes requests; under torchrun only rank 0 does."""
        return True

    def follow(self) -> None:
        """Run rank 0's requests until it closes. Only where `leads` is False."""
        raise NotImplementedError(f"{type(self).__name__} runs in one process")

    @abstractmethod
    async def start(self) -> None:
        """Load the model; returns once requests can be answered."""

    def effective(self) -> Mapping[str, Any]:
        """The started engine's settings by its own names, as JSON values."""
        return {}

    async def reuse(self) -> Reuse:
        """What the requests answered so far took from the prefix cache."""
        return Reuse(enabled=None)

    async def stats(self) -> Stats:
        """What it is doing now. Asked once a second; an engine that can't be asked tells nothing.

        May be cancelled."""
        return Stats()

    async def detokenize(self, ids: Sequence[int]) -> str | None:
        """The text of ids by the engine's own tokenizer, special tokens included; None where it
        has none, or can't be asked."""
        return None

    @abstractmethod
    def stream(self, request: Request) -> AsyncGenerator[Delta, None]:
        """Answer one request. Closing the iterator early aborts the request."""

    def endpoint(self, request: Request) -> str | None:
        """The URL of the running server that answers an open request; None for an engine that was
        started here."""
        return None

    @abstractmethod
    async def close(self) -> None:
        """End the engine's processes and free its resources. Safe to call twice."""


@dataclass(frozen=True)
class BackendSpec:
    """A row of the registry."""

    name: str
    target: str  # "module:Class", imported only when the backend is used
    scenarios: tuple[Scenario, ...]
    torchrun: bool  # started by the _mpi scripts, one process a rank
    attached: str | None = None  # the class for servers that are already running
    hidden: bool = False  # for tests: not listed in --help
