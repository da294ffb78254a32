"""How much memory a rank needs, known before anything is loaded.

Weights are counted on the meta device, from the model as a rank of a run has it. The largest step
is added up from its largest tensors. What CUDA, its graphs and NCCL take is assumed.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import torch

from errors import ParallelError, UsageError
from ref_dsinfer import parallel
from ref_dsinfer.attention import CONTEXT_CHUNK, Attention
from ref_dsinfer.config import ModelConfig
from ref_dsinfer.model import Model
from ref_dsinfer.parallel import RankInfo
from ref_dsinfer.rounding import ceil_div

# Bytes of whole GPUs, as nvidia-smi reports them.
GPUS = {"H100-80GB": 81_559 << 20, "H200": 143_771 << 20, "B200": 183_359 << 20}
# Assumed, not measured: CUDA's context and its loaded kernels, the graphs of all sizes beside their
# temporary tensors, and NCCL's buffers.
CUDA_BYTES, GRAPH_BYTES, NCCL_BYTES = 600 << 20, 1 << 30, 1 << 30
MOST_GPUS = 32
DECODE_PROGRAMS, DECODE_HEADS = 4096, 64  # of the decode kernel at most, and heads of each: see mla


@dataclass(frozen=True)
class Run:
    """What a rank's memory depends on."""

    config: ModelConfig
    dtype: torch.dtype  # of activations and the KV cache
    world_size: int
    attention: str  # one of parallel.ATTENTION
    length: int  # tokens of the longest request
    max_running: int  # sequences, of all ranks
    step_tokens: int  # of a step, of all ranks


@dataclass(frozen=True)
class Need:
    """Bytes on a GPU."""

    weights: int
    cache: int  # of the longest request
    step: int  # temporary tensors of the largest step, once run eagerly and once as a graph
    reserved: int  # for CUDA, its graphs and NCCL

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))

    def __str__(self) -> str:
        return (
            f"{self.total / 1e9:.1f} GB (weights {self.weights / 1e9:.1f}, KV cache of the longest"
            f" request {self.cache / 1e9:.1f}, a step {self.step / 1e9:.1f}, CUDA and NCCL"
            f" {self.reserved / 1e9:.1f})"
        )


def need(run: Run) -> Need:
    """What each GPU of a run needs. Raises: ParallelError as `parallel.check`."""
    parallel.check(run.config, run.world_size, run.attention)
    return Need(
        weights(run),
        run.length * run.config.token_bytes(run.dtype.itemsize),
        2 * step(run),
        CUDA_BYTES + GRAPH_BYTES + (NCCL_BYTES if run.world_size > 1 else 0),
    )


def check(run: Run, free: int) -> None:
    """Raises: UsageError if a GPU of which so many bytes are `free` is too small, with what would
    be large enough."""
    needed = need(run)
    if needed.total - CUDA_BYTES <= free:  # CUDA's own part is no longer free
        return
    enough = [f"{count}x{name}" for name, count in fitting(run)]
    gpus = f"each of {run.world_size} GPUs" if run.world_size > 1 else "the GPU"
    raise UsageError(
        f"{gpus} needs {needed}, and {free / 1e9:.1f} GB are free:"
        f" use more or larger GPUs ({', '.join(enough) or f'more than {MOST_GPUS}'}), or lower"
        " --max-model-len"
    )


def fitting(run: Run) -> Iterator[tuple[str, int]]:
    """Of each kind of GPU the smallest number that can hold the run."""
    for name, size in GPUS.items():
        count = 1
        while count <= MOST_GPUS:
            try:
                if need(replace(run, world_size=count)).total <= size:
                    yield name, count
                    break
            except ParallelError:
                pass  # the model can't be split over so many
            count *= 2


def weights(run: Run) -> int:
    """Bytes of a rank's weights once they are loaded, and of the rotations of all positions."""
    model = on_meta(run)
    size = sum(parameter.nbytes for parameter in model.parameters())
    for module in model.modules():
        if isinstance(module, Attention):  # keeps kv_b dequantized
            stored = module.kv_b_proj
            size += stored.weight.numel() * run.dtype.itemsize
            size -= sum(parameter.nbytes for parameter in stored.parameters())
    return size + run.length * run.config.rope_dim // 2 * torch.complex64.itemsize


def on_meta(run: Run) -> Model:
    """The model as a rank has it, without values."""
    with torch.device("meta"):
        ranks = parallel.init_ranks(
            RankInfo(0, run.world_size, 0, run.world_size), torch.device("meta"), run.attention
        )
        return Model(run.config, run.dtype, ranks)


def step(run: Run) -> int:
    """Bytes of temporary tensors in the largest step: prompts that fill it, or every sequence's
    logits."""
    config, item = run.config, run.dtype.itemsize
    dp_size = run.world_size if run.attention == "dp" else 1
    heads = config.heads // (run.world_size // dp_size)
    own = ceil_div(run.step_tokens, dp_size)  # tokens of a rank
    every = own * dp_size
    width = config.nope_dim + config.rope_dim
    keys_values = heads * (config.nope_dim + config.v_dim + 2 * width) * item  # of a token
    attention = own * heads * width * (2 * item + 3 * 4)  # queries, and values in fp32
    attention += (own + min(CONTEXT_CHUNK, run.length)) * keys_values
    attention += DECODE_PROGRAMS * min(heads, DECODE_HEADS) * config.kv_lora * 4
    pairs = every * config.active_experts
    experts = pairs * (config.expert_intermediate * (item + 1) + config.hidden * item)  # e4m3 too
    experts += 2 * every * config.hidden * 4  # partial sums
    hidden = 3 * own * config.hidden * item + every * config.hidden * item
    logits = run.max_running * (config.vocab_size // run.world_size + config.hidden) * 4
    return hidden + max(attention, experts, logits)
