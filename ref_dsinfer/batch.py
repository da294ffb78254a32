"""What one step feeds this rank's model. The tokens of all sequences lie one after another, without
padding.

Shape letters: T tokens, G those of all data-parallel ranks and their padding, N decoded tokens,
M blocks of the longest sequence.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Decodes:
    """What each of N decoded tokens sees of the KV cache."""

    tables_NM: Tensor  # int64, block table of each token's sequence, padded with 0
    lengths_N: Tensor  # int64, tokens in the KV cache, the decoded one among them
    # A library's attention of these tokens' queries [N, ...] to blocks of the KV cache, in place of
    # our kernel.
    planned: Callable[[Tensor, Tensor], Tensor] | None = None

    @cached_property
    def order_N(self) -> Tensor:
        """The tokens' numbers, int64, those that see most first: made once a step, by its first
        layer."""
        return self.lengths_N.argsort(descending=True)


@dataclass(frozen=True)
class Prefill:
    """A run of one sequence's tokens, from a prompt or from an answer that is recomputed."""

    count: int  # tokens
    context: Tensor | None  # int64, slots of all earlier tokens; None where none are earlier


@dataclass(frozen=True)
class Batch:
    """Tokens to run and where they belong: first the decoded ones, then the prefills' in order."""

    tokens_T: Tensor  # int64
    positions_T: Tensor  # int64
    slots_T: Tensor  # int64, where in the KV cache each token's latents go
    decodes: Decodes | None
    prefills: tuple[Prefill, ...]
    width: int  # the most tokens that a rank has in this step: others are padded to it
    real_G: Tensor | None = None  # bool, which rows are tokens; None where none is padding


def padded_rows(counts: list[int], width: int) -> NDArray[np.int64]:
    """Rows of the tokens of data-parallel ranks that have so many each, padded to `width`."""
    return np.concatenate([rank * width + np.arange(count) for rank, count in enumerate(counts)])


def real_rows(counts_R: Tensor, width: int) -> Tensor:
    """`Batch.real_G` of data-parallel ranks that have so many tokens each, padded to `width`."""
    return (torch.arange(width, device=counts_R.device) < counts_R[:, None]).flatten()
