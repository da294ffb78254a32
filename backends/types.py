"""The nouns every engine speaks. Imports nothing of this project.

An engine sees token ids only. Each token it samples leaves it in a `Delta`; a `Delta` carries the
new ids alone, and never a stop id: `finish="stop"` stands for the stop id that ended the answer.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Finish = Literal["stop", "length"]
Scenario = Literal["offline", "server", "interactive"]


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
class EngineConfig:
    """What an engine needs to start, in words all engines share; None leaves it to the engine."""

    model: str  # local directory; of a server that runs already, its tokenizer's
    device: str = "auto"  # auto, cpu or cuda
    dtype: str = "auto"  # of activations: auto, bfloat16 or float32
    max_model_len: int | None = None  # tokens of prompt and answer; None: what the model allows
    max_running: int | None = None  # sequences decoded at once
    tensor_parallel: int = 1  # processes
    pipeline_parallel: int = 1  # processes
    data_parallel: int = 1  # replicas
    attention: str = "tp"  # each process has some of its heads (tp) or of the requests (dp)
    attention_dp: int = 1  # of the tensor-parallel processes: groups with whole attention each
    expert_parallel: bool = False  # whole experts to each process, not a slice of each
    memory_share: float | None = None  # of the device's memory, for weights and cache together
    kv_dtype: str | None = None  # of the cache, by the engine's own name
    quantization: str | None = None  # of the weights, by the engine's own name
    attention_backend: str | None = None  # by the engine's own name
    gemm: Literal["bf16", "fp8"] | None = (
        None  # arithmetic of block-fp8 weights; None: the engine's own
    )
    deterministic: bool = False  # the same answer whatever else is in the batch
    eager: bool = False  # neither compiled nor captured
    compile: bool = False  # with torch.compile, also where that is not the engine's default
    speculative: bool = False  # R1's own MTP head, three steps, one candidate each
    seed: int = 0
    coalesce: bool = False  # True where nobody reads single-token times: deltas may be long
    options: Mapping[str, str] = field(default_factory=dict)  # the engine's own, by its own names
    endpoints: tuple[str, ...] = ()  # URLs of servers that run already, to use instead of starting
    served_model: str | None = None  # what these servers call the model; None: as `model` is called
    log: Path | None = None  # file for what the engine's own processes say; None: not kept
    start_timeout: float = 3600.0  # seconds until it must be able to answer
    stall_timeout: float = 1800.0  # seconds without a token of any request that end a run


class Backend(ABC):
    """One engine. `start`, `stream` and `close` run on one event loop.

    Errors: whatever stops an engine is raised from `start` or from every open `stream`.
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
    devices: tuple[str, ...]
    takes: frozenset[str] = frozenset()  # fields of EngineConfig that not every engine knows
    attached: str | None = None  # the class that uses servers which run already
    hidden: bool = False  # a test aid, not offered in --help
