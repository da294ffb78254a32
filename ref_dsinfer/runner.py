"""Runs sequences through the model: builds batches, owns the weights and the cache."""

import logging
from itertools import accumulate

import torch
from torch import Tensor

from ref_dsinfer.batch import Batch, Decodes, Prefill
from ref_dsinfer.cache import PagedCache, token_bytes
from ref_dsinfer.graphs import Decoder
from ref_dsinfer.model import Model
from ref_dsinfer.parallel import Ranks
from ref_dsinfer.scheduler import Work

log = logging.getLogger(__name__)


class Runner:
    """The model of this rank, and its cache. A step of the engine is `run`, then `draft`."""

    drafts = 0  # tokens that are drafted for a sequence at most

    def __init__(
        self, model: Model, blocks: int, block_size: int, dtype: torch.dtype, ranks: Ranks
    ) -> None:
        self.model, self.ranks, self.device = model, ranks, ranks.device
        # One block more than the scheduler knows, for the rows that pad a decode step.
        self.spare = blocks
        self.cache = PagedCache(model.config, blocks + 1, block_size, dtype, ranks.device)
        self.decoder: Decoder | None = None  # for steps of decodes only, at fixed shapes
        size = blocks * block_size
        log.info(
            "the cache holds %d tokens in %d blocks, %.2f GiB",
            *(size, blocks, size * token_bytes(model.config, dtype) / 2**30),
        )

    def use_graphs(self, most: int, longest: int) -> None:
        """Decode in CUDA graphs: `most` sequences of at most `longest` tokens."""
        self.decoder = Decoder(self.model, self.cache, self.spare, most, longest)
        self.decoder.capture()

    @torch.inference_mode()
    def run(self, work: list[Work]) -> Tensor:
        """Logits [N, V] for each token to be drawn, in order, on every rank. The work of all ranks
        comes share by share, and of each share decodes first."""
        shares: list[list[Work]] = [[] for _ in range(self.ranks.shares)]
        for one in work:
            shares[one.sequence.share].append(one)
        own = shares[self.ranks.own_share]
        if self.decoder and all(one.decodes and one.draws for one in work):
            hidden_ND = self.decoder.run(own, max(map(len, shares)))
        else:
            width = max(sum(one.count for one in share) for share in shares)
            hidden_ND = self.drawn(own, self.model(self.batch(own, width), self.cache))
        return self.logits(hidden_ND, [sum(one.draws for one in share) for share in shares])

    def draft(self, work: list[Work]) -> None:
        """Draft tokens for the sequences of the work just run; this runner drafts none."""

    def drawn(self, work: list[Work], hidden_TD: Tensor) -> Tensor:
        """Of the work's hidden states those after which tokens are drawn, [N, D]."""
        ends = accumulate(one.count for one in work)
        rows = [
            row for one, end in zip(work, ends, strict=True) for row in range(end - one.draws, end)
        ]
        return hidden_TD if len(rows) == len(hidden_TD) else hidden_TD[self._ids(rows)]

    def logits(self, hidden_ND: Tensor, counts: list[int]) -> Tensor:
        """Logits, on every rank, of all shares' hidden states; `counts`: how many of each."""
        width = max(counts)
        if not width:  # prompts that are read in part, and nothing else
            return torch.empty(0, self.model.config.vocab_size, device=self.device)
        hidden_ND = self.ranks.all_tokens(hidden_ND, width)
        if len(hidden_ND) > sum(counts):  # some share is padded
            rows = [n * width + row for n, count in enumerate(counts) for row in range(count)]
            hidden_ND = hidden_ND[self._ids(rows)]
        return self.model.logits(hidden_ND)

    def batch(self, work: list[Work], width: int) -> Batch:
        """The tokens of this rank's work in a step, in which a rank has `width` at most."""
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
            *(self._ids(tokens), self._ids(positions), self._ids(rows)),
            *(decodes, tuple(prefills), width),
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
