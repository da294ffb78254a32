"""Runs sequences through the model: builds batches, owns the weights and the cache."""

import logging
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor

from ref_dsinfer.batch import Decode, Prefill
from ref_dsinfer.cache import SlotCache
from ref_dsinfer.config import ModelConfig
from ref_dsinfer.model import Model
from ref_dsinfer.parallel import Ranks
from ref_dsinfer.sequence import Sequence

log = logging.getLogger(__name__)


class Runner:
    """The model of this rank with room for `slots` sequences of `max_length` tokens."""

    def __init__(
        self,
        model_dir: Path,
        config: ModelConfig,
        dtype: torch.dtype,
        ranks: Ranks,
        slots: int,
        max_length: int,
    ) -> None:
        self.device, self.dtype = ranks.device, dtype
        self.model = Model.load(model_dir, config, dtype, ranks, max_length)
        self.cache = SlotCache(config, slots, max_length, dtype, ranks.device)
        largest = slots * max_length * config.latent_dim * config.layers * dtype.itemsize
        log.info("latent cache grows with the sequences, to %.1f GiB at most", largest / 2**30)

    @torch.inference_mode()
    def run(self, sequences: list[Sequence], prefill: bool) -> Tensor:
        """Logits [N, V] after each sequence's last token.

        A prefill runs whole prompts; a decode one token of each running sequence, slots in order.
        """
        self.cache.reserve(max(sequence.length for sequence in sequences))
        if not prefill:
            return self.model.logits(self.model(self.decode_batch(sequences), self.cache))
        batch = self.prefill_batch(sequences)
        last = self._ids([end - 1 for end in accumulate(batch.lengths)])
        return self.model.logits(self.model(batch, self.cache)[last])

    def prefill_batch(self, sequences: list[Sequence]) -> Prefill:
        """All tokens that these sequences have."""
        lengths = tuple(sequence.length for sequence in sequences)
        tokens: list[int] = []
        for sequence in sequences:
            tokens += sequence.prompt_ids
            tokens += sequence.answer_ids
        positions = torch.cat([torch.arange(length) for length in lengths]).to(self.device)
        slots = self._ids([sequence.slot for sequence in sequences])
        slots_T = slots.repeat_interleave(self._ids(list(lengths)), output_size=sum(lengths))
        return Prefill(self._ids(tokens), positions, self.cache.rows(slots_T, positions), lengths)

    def decode_batch(self, sequences: list[Sequence]) -> Decode:
        """The last token of every running sequence, which is the one the cache lacks."""
        lengths = [sequence.length for sequence in sequences]
        positions = self._ids([length - 1 for length in lengths])
        slots = self._ids([sequence.slot for sequence in sequences])
        seen = torch.arange(max(lengths), device=self.device) <= positions[:, None]
        mask = torch.zeros(seen.shape, dtype=self.dtype, device=self.device)
        return Decode(
            self._ids([sequence.answer_ids[-1] for sequence in sequences]),
            positions,
            self.cache.rows(slots, positions),
            mask.masked_fill_(~seen, -torch.inf),
        )

    def _ids(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self.device)
