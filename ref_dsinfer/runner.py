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
        self.model, self.device = model, ranks.device
        self.cache = PagedCache(model.config, blocks, block_size, dtype, ranks.device)
        size = blocks * block_size
        log.info(
            "the cache holds %d tokens in %d blocks, %.2f GiB",
            *(size, blocks, size * token_bytes(model.config, dtype) / 2**30),
        )

    @torch.inference_mode()
    def run(self, work: list[Work]) -> Tensor:
        """Logits [N, V] for each token to be drawn, in order. Decodes come first."""
        return self.logits(work, self.model(self.batch(work), self.cache))

    def logits(self, work: list[Work], hidden_TD: Tensor) -> Tensor:
        """Of the work's hidden states those after which tokens are drawn, as logits [N, V]."""
        ends = accumulate(one.count for one in work)
        drawn = [
            row for one, end in zip(work, ends, strict=True) for row in range(end - one.draws, end)
        ]
        if len(drawn) < len(hidden_TD):
            hidden_TD = hidden_TD[self._ids(drawn)]
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
        """A row for each token, also of one sequence: it sees what lies before it, and itself."""
        longest = max(len(one.sequence.blocks) for one in work)
        table: list[int] = []
        lengths: list[int] = []
        for one in work:
            blocks = one.sequence.blocks
            table += (blocks + [0] * (longest - len(blocks))) * one.count
            lengths += range(one.start + 1, one.stop + 1)
        return Decodes(self._ids(table).view(-1, longest), self._ids(lengths))

    def _ids(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self.device)
