"""Where tokens' latents lie between steps: blocks of some tokens each, and how many there can be.

The model writes latents to rows, and reads whole blocks of them. A row is a block's number times
the block size, plus the place within; which block holds which tokens is the scheduler's matter.
"""

import numpy as np
import psutil
import torch
from torch import Tensor

from errors import UsageError
from ref_dsinfer.config import ModelConfig
from ref_dsinfer.parallel import Ranks

BLOCK_SIZE = 64  # tokens
SHARE = 0.95  # of what is free once the weights are loaded; a step needs some beside the cache


class PagedCache:
    """Latents [layer, block, place, latent]."""

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

    def write(self, layer: int, rows_T: Tensor, latents: Tensor) -> None:
        """Store latents [T, latent]."""
        self._layers[layer].view(-1, latents.shape[-1])[rows_T] = latents

    def read(self, layer: int, rows: Tensor) -> Tensor:
        """Latents of rows of any shape, [*rows, latent]."""
        return self._layers[layer].view(-1, self._layers.shape[-1])[rows]

    def blocks(self, layer: int) -> Tensor:
        """All blocks of a layer, [B, place, latent]."""
        return self._layers[layer]


def zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros, and not whatever memory held: masked places are multiplied by 0, and 0 · NaN is NaN.

    On a CPU they take no memory until they are written to.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    size = int(np.prod(shape)) * dtype.itemsize
    return torch.from_numpy(np.zeros(size, np.uint8)).view(dtype).view(shape)


def token_bytes(config: ModelConfig, dtype: torch.dtype) -> int:
    """Bytes of one token's latents in all layers."""
    return config.cached_layers * config.latent_dim * dtype.itemsize


def block_count(
    config: ModelConfig,
    dtype: torch.dtype,
    ranks: Ranks,
    longest: int,
    sequences: int,
    block_size: int,
    tokens: int | None,
) -> int:
    """How many blocks a rank's cache has, on every rank alike.

    As many as fit the free memory, though no more than `sequences` of the `longest` (in tokens)
    can fill; or those of just so many `tokens`.
    Errors: UsageError, the same on every rank, where not even one of the longest fits.
    """
    if tokens is None:
        free = int(free_memory(ranks) * SHARE)
        tokens = ranks.lowest(free // token_bytes(config, dtype))
    blocks, each = tokens // block_size, -(-longest // block_size)
    if blocks < each:
        raise UsageError(
            f"a cache holds {blocks * block_size} tokens and one request may need {longest}: "
            "lower --max-model-len, or split the model over more processes"
        )
    return min(blocks, each * sequences)


def free_memory(ranks: Ranks) -> int:
    """Bytes that this rank may still take."""
    if ranks.device.type == "cuda":
        return torch.cuda.mem_get_info(ranks.device)[0]
    return psutil.virtual_memory().available // ranks.local_world
