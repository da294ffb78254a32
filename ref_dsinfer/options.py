"""What an engine may be told beside its model."""

from dataclasses import dataclass

from errors import UsageError
from ref_dsinfer.cache import BLOCK_SIZE
from ref_dsinfer.cpu import DTYPES
from ref_dsinfer.gemm import ARITHMETICS, Arithmetic
from ref_dsinfer.kernels import KERNELS, Kernels
from ref_dsinfer.parallel import ATTENTION
from ref_dsinfer.scheduler import STEP_TOKENS

DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class EngineOptions:
    """All that can be checked without the model is checked here. Raises: UsageError."""

    device: str = "auto"  # one of DEVICES
    dtype: str = "auto"  # of activations, one of DTYPES
    attention: str = "tp"  # split over ranks by heads (tp) or by sequences (dp)
    max_model_len: int | None = None  # tokens of prompt and answer; None: the model's own limit
    max_running: int = 64  # sequences
    seed: int = 0
    threads: int | None = None  # of each process on a CPU; None: its part of the cores
    block_size: int = BLOCK_SIZE  # tokens
    cache_tokens: int | None = None  # in the KV caches of all ranks; None: what fits in memory
    step_tokens: int = STEP_TOKENS  # in one step at most
    gemm: Arithmetic = "bf16"  # arithmetic of products with block-fp8 weights, see gemm.py
    kernels: Kernels = "auto"  # of decode attention on GPUs; auto: own
    graphs: bool = True  # run steps as CUDA graphs where there is a GPU
    symmetric_memory: bool = True  # all-reduce in it where GPUs of one machine have it
    coalesce: bool = False  # put out whole answers, at their ends
    speculative: bool = False  # draft with the model's own MTP layer

    def __post_init__(self) -> None:
        for name, known in (
            ("device", DEVICES),
            ("dtype", DTYPES),
            ("attention", tuple(ATTENTION)),
            ("gemm", ARITHMETICS),
            ("kernels", KERNELS),
        ):
            value = getattr(self, name)
            if value not in known:
                raise UsageError(f"{name} {value!r} is unknown; {', '.join(known)} are known")
        for name in (
            *("max_model_len", "max_running", "threads"),
            *("block_size", "cache_tokens", "step_tokens"),
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} is {value}; it must be 1 or more")
