"""The paged KV cache: where tokens' latents lie between steps, and how many fit.

The model writes latents to slots and reads whole blocks of them. A slot is a block's number times
the block size, plus the offset within; which block holds which tokens is the scheduler's matter.
"""

import numpy as np
import psutil
import torch
from torch import Tensor

from errors import UsageError
from ref_dsinfer.config import ModelConfig
from ref_dsinfer.parallel import Ranks
from ref_dsinfer.rounding import ceil_div

BLOCK_SIZE = 64  # tokens
MEMORY_FRACTION = 0.95  # of the memory that is free once weights are loaded; steps need the rest


class PagedCache:
    """Latents [layer, block, offset, latent]."""

    def __init__(
        self,
        config: ModelConfig,
        blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.block_size = block_size
        self._layers = zeros(
            (config.cached_layers, blocks, block_size, config.latent_dim), dtype, device
        )

    def write(self, layer: int, slots_T: Tensor, latents: Tensor) -> None:
        """Store latents [T, latent]."""
        self._layers[layer].view(-1, latents.shape[-1])[slots_T] = latents

    def read(self, layer: int, slots: Tensor) -> Tensor:
        """Latents of slots of any shape, [*slots, latent]."""
        return self._layers[layer].view(-1, self._layers.shape[-1])[slots]

    def blocks(self, layer: int) -> Tensor:
        """All blocks of a layer, [B, offset, latent]."""
        return self._layers[layer]


def zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros rather than uninitialised memory: masked slots are multiplied by 0, and 0 · NaN is NaN.

    On a CPU they take no memory until they are written to.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    size = int(np.prod(shape)) * dtype.itemsize
    return torch.from_numpy(np.zeros(size, np.uint8)).view(dtype).view(shape)


def block_count(
    config: ModelConfig,
    dtype: torch.dtype,
    ranks: Ranks,
    max_model_len: int,
    max_running: int,
    block_size: int,
    tokens: int | None,
    reserved: int = 0,
) -> int:
    """Blocks of a rank's KV cache, the same number on every rank.

    As many as fit the free memory, but for `reserved` bytes, or hold just `tokens` where these are
    given; but no more than `max_running` sequences of `max_model_len` tokens can fill.
    Raises: UsageError, the same on every rank, where not even one such sequence fits.
    """
    if tokens is None:
        free = int(max(free_memory(ranks) - reserved, 0) * MEMORY_FRACTION)
        tokens = ranks.minimum(free // config.token_bytes(dtype.itemsize))
    blocks, sequence_blocks = tokens // block_size, ceil_div(max_model_len, block_size)
    if blocks < sequence_blocks:
        raise UsageError(
            f"the KV cache holds {blocks * block_size} tokens and one request may need"
            f" {max_model_len}: lower --max-model-len, or split the model over more processes"
        )
    return min(blocks, sequence_blocks * max_running)


def free_memory(ranks: Ranks) -> int:
    """Bytes that this rank may still allocate."""
    if ranks.device.type == "cuda":
        return torch.cuda.mem_get_info(ranks.device)[0]
    return psutil.virtual_memory().available // ranks.local_world_size
