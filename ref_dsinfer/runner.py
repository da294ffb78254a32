"""Runs sequences through the model: builds batches, owns the weights and the cache."""

import logging
from itertools import accumulate

import torch
from torch import Tensor

from ref_dsinfer.batch import Batch, Decodes, Prefill
from ref_dsinfer.cache import PagedCache, token_bytes
from ref_dsinfer.model import Model
from ref_dsinfer.parallel import Ranks
from ref_dsinfer.scheduler import Work

log = logging.getLogger(__name__)


class Runner:
    """The model of this rank, and its cache."""

    def __init__(
        self, model: Model, blocks: int, block_size: int, dtype: torch.dtype, ranks: Ranks
    ) -> None:
        self.model, self.device, self.dtype = model, ranks.device, dtype
        self.cache = PagedCache(model.config, blocks, block_size, dtype, ranks.device)
        self._places_S = torch.arange(block_size, device=self.device)
        size = blocks * block_size
        log.info(
            "the cache holds %d tokens in %d blocks, %.2f GiB",
            *(size, blocks, size * token_bytes(model.config, dtype) / 2**30),
        )

    @torch.inference_mode()
    def run(self, work: list[Work]) -> Tensor:
        """Logits [N, V] after each work's last token. Decodes come first."""
        hidden_TD = self.model(self.batch(work), self.cache)
        if len(hidden_TD) > len(work):
            hidden_TD = hidden_TD[self._ids([end - 1 for end in accumulate(w.count for w in work)])]
        return self.model.logits(hidden_TD)

    def batch(self, work: list[Work]) -> Batch:
        """The tokens of a step."""
        tokens: list[int] = []
        positions: list[int] = []
        rows: list[int] = []
        for one in work:
            tokens += one.sequence.ids(one.start, one.stop)
            positions += range(one.start, one.stop)
            rows += self._rows(one, one.start)
        decoded = [one for one in work if one.decodes]
        prefills = [
            Prefill(one.count, self._ids(self._rows(one, 0)) if one.start else None)
            for one in work[len(decoded) :]
        ]
        decodes = self._decodes(decoded) if decoded else None
        return Batch(
            self._ids(tokens), self._ids(positions), self._ids(rows), decodes, tuple(prefills)
        )

    def _rows(self, work: Work, start: int) -> list[int]:
        """Where the cache keeps the sequence's tokens from `start` to the work's last."""
        size = self.cache.block_size
        blocks = work.sequence.blocks
        return [
            blocks[position // size] * size + position % size
            for position in range(start, work.stop)
        ]

    def _decodes(self, work: list[Work]) -> Decodes:
        """Where the cache is used densely its blocks are taken as they lie, others' among them:
        that costs less than to copy one's own."""
        size = self.cache.block_size
        blocks: list[int] = []
        owners: list[int] = []
        filled: list[int] = []  # tokens in each block
        for number, one in enumerate(work):
            own = one.sequence.blocks
            blocks += own
            owners += [number] * len(own)
            filled += [size] * (len(own) - 1)
            filled.append(one.stop - size * (len(own) - 1))
        top = max(blocks) + 1
        blocks_B, owner_B, filled_B = map(self._ids, (blocks, owners, filled))
        which: slice | Tensor = blocks_B
        if len(blocks) > top // 2:
            which = slice(top)
            owner_B = owner_B.new_full((top,), len(work)).index_copy_(0, blocks_B, owner_B)
            filled_B = filled_B.new_full((top,), size).index_copy_(0, blocks_B, filled_B)
        seen_BS = self._places_S < filled_B[:, None]
        mask_BS = torch.zeros(seen_BS.shape, dtype=self.dtype, device=self.device)
        return Decodes(len(work), which, owner_B, mask_BS.masked_fill_(~seen_BS, -torch.inf))

    def _ids(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self.device)
