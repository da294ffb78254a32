"""Where tokens' latents live between steps.

The model knows a cache by three methods only: `write` at rows, `context` of the running sequences,
and nothing of how rows are found; the runner asks `rows` for them. A paged cache answers the same
questions with a block table.
"""

import torch
from torch import Tensor

from ref_dsinfer.config import ModelConfig

GROWTH = 256  # tokens: slots start this long and double


class SlotCache:
    """One slot a running sequence, as long as the longest one needs; [slot, position, latent].

    Running sequences fill the slots from 0 on without gaps (see `Scheduler`), so that the context
    of a decode step is a view.
    """

    def __init__(
        self,
        config: ModelConfig,
        slots: int,
        max_length: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.max_length = max_length  # tokens
        self.capacity = 0  # tokens a slot holds now
        empty = torch.empty(slots, 0, config.latent_dim, dtype=dtype, device=device)
        self._layers = [empty] * config.layers

    @torch.inference_mode()
    def reserve(self, length: int) -> None:
        """Make every slot at least `length` tokens long, layer by layer."""
        if length <= self.capacity:
            return
        capacity = max(self.capacity, GROWTH)
        while capacity < length:
            capacity *= 2
        capacity = min(capacity, self.max_length)
        for layer, old in enumerate(self._layers):
            # Zeros, not whatever memory held: masked positions are multiplied by 0, and 0 · NaN
            # is NaN.
            self._layers[layer] = old.new_zeros(old.shape[0], capacity, old.shape[2])
            self._layers[layer][:, : self.capacity] = old
        self.capacity = capacity

    def rows(self, slots: Tensor, positions: Tensor) -> Tensor:
        """Rows where tokens of these slots and positions lie; valid until the next `reserve`."""
        return slots * self.capacity + positions

    def write(self, layer: int, rows_T: Tensor, latents: Tensor) -> None:
        """Store latents [T, latent]."""
        self._layers[layer].view(-1, latents.shape[-1])[rows_T] = latents

    def context(self, layer: int, count: int, length: int) -> Tensor:
        """The first `length` tokens of the first `count` slots, [count, length, latent]."""
        return self._layers[layer][:count, :length]

    @torch.inference_mode()
    def move(self, source: int, target: int, length: int) -> None:
        """Give the `length` tokens of one slot to another."""
        for layer in self._layers:
            layer[target, :length] = layer[source, :length]
