"""Runs scheduled tokens through the model: builds batches, owns the weights and the KV cache."""

from dataclasses import replace
from itertools import accumulate, count, takewhile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ref_dsinfer.attention import CONTEXT_CHUNK
from ref_dsinfer.batch import Batch, Decodes, Prefill, padded_rows, real_rows
from ref_dsinfer.cache import PagedCache, free_memory
from ref_dsinfer.decoding import Decoded, Decoding
from ref_dsinfer.graphs import Decoder, GraphPool, Limits, Rows
from ref_dsinfer.kernels.flashinfer_mla import FlashInfer, Requests
from ref_dsinfer.model import Model
from ref_dsinfer.parallel import Ranks
from ref_dsinfer.sampler import Scores, greedy
from ref_dsinfer.scheduler import ScheduledTokens

# Tokens of a prompt that run at fixed shapes, as rows of their own. Each of these reads its whole
# context, with 3.4 times the arithmetic of prefill: of little weight beside short contexts only.
FIXED_CONTEXT = 4096


class Runner:
    """This rank's model and KV cache. A step of the engine is `run`, then `draft`."""

    drafts = 0  # tokens that are drafted for a sequence at most

    def __init__(
        self,
        model: Model,
        blocks: int,
        block_size: int,
        dtype: torch.dtype,
        ranks: Ranks,
        library: FlashInfer | None = None,
    ) -> None:
        """`library`: attends decoded tokens in place of our kernel."""
        self.library = library
        self.model, self.ranks, self.device = model, ranks, ranks.device
        # One block that the scheduler does not know of, for the rows that pad a step.
        self.padding_block = blocks
        self.cache = PagedCache(model.config, blocks + 1, block_size, dtype, ranks.device)
        self.decoder: Decoder | None = None  # for steps of fixed shapes

    def fix_shapes(self, step_tokens: int, max_running: int, max_model_len: int) -> None:
        """Run steps at fixed shapes from now on: up to `step_tokens` of `max_running` sequences of
        a rank, each of `max_model_len` tokens at most."""
        samples = max_running * (1 + self.drafts)
        limits = Limits(max(step_tokens, samples), max_running, samples, max_model_len)
        self.decoder = Decoder(self.model, self.cache, self.padding_block, limits, self.library)

    def capture_graphs(self, largest_only: bool = False) -> GraphPool:
        """Run the fixed shapes, or only the largest one, as CUDA graphs from now on; returns their
        memory."""
        assert self.decoder
        return self.decoder.capture(self.decoder.sizes[-1:] if largest_only else self.decoder.sizes)

    def graph_bytes(self, step_tokens: int, max_running: int, max_model_len: int) -> int:
        """GPU memory that `fix_shapes` and `capture_graphs` take: tried out with the largest, whose
        memory the others share. Every rank must call this."""
        torch.cuda.empty_cache()
        before = free_memory(self.ranks)
        self.fix_shapes(step_tokens, max_running, max_model_len)
        self.capture_graphs(largest_only=True)
        torch.cuda.empty_cache()
        taken = before - free_memory(self.ranks)
        self.close()
        torch.cuda.empty_cache()
        return taken

    @torch.inference_mode()
    def run(self, scheduled: list[ScheduledTokens], decoding: Decoding | None = None) -> Scores:
        """Scores of each token to sample, of all ranks: those in `decoding`, if there are any, then
        the scheduled ones, in order.

        `scheduled` holds the tokens of all data-parallel ranks, as `Scheduler.schedule` orders
        them; this rank's model runs its own.
        """
        by_rank: list[list[ScheduledTokens]] = [[] for _ in range(self.ranks.dp_size)]
        for item in scheduled:
            by_rank[item.sequence.dp_rank].append(item)
        own = by_rank[self.ranks.dp_rank]
        firsts = decoding.counts if decoding else [0] * len(by_rank)
        counts = [
            first + sum(item.count for item in items)
            for first, items in zip(firsts, by_rank, strict=True)
        ]
        samples = [
            first + sum(item.samples for item in items)
            for first, items in zip(firsts, by_rank, strict=True)
        ]
        decoded = decoding.part(self.ranks.dp_rank) if decoding else None
        if self.decoder and at_fixed_shape(scheduled):
            step = Rows(self.cache.block_size, decoded)
            if decoding:
                step.block_tables = decoding.changed_tables(self.ranks.dp_rank)
            scores = self.decoder.decode(step, own, counts, samples)
        else:
            hidden_TD = self.forward(self.batch(own, counts, decoded))
            first = firsts[self.ranks.dp_rank]
            scores = self.scores(self.sampled_rows(own, hidden_TD, first), samples)
        if len(samples) == 1:
            return scores
        leads = np.concatenate(
            [np.arange(count) < first for first, count in zip(firsts, samples, strict=True)]
        )
        return replace(scores, rows=np.concatenate([scores.rows[leads], scores.rows[~leads]]))

    def forward(self, batch: Batch) -> Tensor:
        """Hidden states [T, D] of a batch of any shape."""
        return self.model(batch, self.cache)

    @torch.inference_mode()
    def warm_up(self, tokens: int, sequences: int) -> None:
        """Run a step of each kind and size, up to so many tokens and sequences of a rank.

        This compiles kernels and sets up collectives, which a measured run should not wait for, and
        leaves the memory of the largest step with the allocator. Every rank must call this.
        """
        hidden_TD = None
        for size in (*takewhile(lambda size: size < tokens, (2**n for n in count())), tokens):
            for decodes in {0, min(sequences, size - 1), min(sequences, size)}:
                _, hidden_TD = self._warm_up_step(size, decodes)
        assert hidden_TD is not None
        rows = sequences * (1 + self.drafts)
        self.scores(hidden_TD[:1].expand(rows, -1), [rows] * self.ranks.dp_size)

    def _warm_up_step(self, tokens: int, decodes: int) -> tuple[Batch, Tensor]:
        """A step of so many tokens, and its hidden states. The first of them are decodes, the
        others a prompt's behind a context; all lie in the padding block."""
        slots = self._ids([self.padding_block * self.cache.block_size])
        prefills = [Prefill(tokens - decodes, slots.expand(2 * CONTEXT_CHUNK))]
        batch = Batch(
            self._ids([0] * tokens),
            self._ids([0] * tokens),
            slots.expand(tokens),
            decodes=self._seen([[self.padding_block]], [0] * decodes, [1] * decodes),
            prefills=tuple(prefills) if decodes < tokens else (),
            width=tokens,
        )
        return batch, self.forward(batch)

    def close(self) -> None:
        """Free the CUDA graphs."""
        if self.decoder:
            self.decoder.close()
        self.decoder = None

    def draft(self, scheduled: list[ScheduledTokens]) -> None:
        """Draft tokens for the sequences that have just run; this runner drafts none."""

    def sampled_rows(
        self, scheduled: list[ScheduledTokens], hidden_TD: Tensor, first: int
    ) -> Tensor:
        """The hidden states after which a token is sampled, [N, D]: all of the decoded tokens, of
        which there are `first`, and the scheduled tokens' behind them."""
        ends = accumulate((item.count for item in scheduled), initial=first)
        rows = list(range(first))
        for item, start in zip(scheduled, ends, strict=False):
            end = start + item.count
            rows += range(end - item.samples, end)
        return hidden_TD if len(rows) == len(hidden_TD) else hidden_TD[self._ids(rows)]

    def scores(self, hidden_ND: Tensor, counts: list[int]) -> Scores:
        """Scores of all ranks' hidden states; `counts`: how many each rank has."""
        width = max(counts)
        if not width:  # nothing but prompts that are prefilled in part
            return Scores(self.model.logits(hidden_ND), self._ids([]), np.arange(0))
        hidden_ND = self.ranks.gather_tokens(hidden_ND, width)
        if len(hidden_ND) > sum(counts):  # some rank's are padded
            hidden_ND = hidden_ND[self._ids(padded_rows(counts, width))]
        part_NV = self.model.logits(hidden_ND)
        return Scores(part_NV, greedy(part_NV, self.ranks), np.arange(sum(counts)))

    def batch(
        self, scheduled: list[ScheduledTokens], counts: list[int], first: Decoded | None = None
    ) -> Batch:
        """This rank's tokens of a step, `first` those of decoding sequences; `counts`: how many
        each data-parallel rank has."""
        tokens: list[int] = first.tokens.tolist() if first else []
        positions: list[int] = first.positions.tolist() if first else []
        slots: list[int] = first.slots.tolist() if first else []
        for item in scheduled:
            tokens += item.sequence.ids(item.start, item.stop)
            positions += range(item.start, item.stop)
            slots += self._slots(item, item.start, item.stop)
        decoded = [item for item in scheduled if item.is_decode]
        prefills = [
            Prefill(item.count, self._ids(self._slots(item, 0, item.start)) if item.start else None)
            for item in scheduled[len(decoded) :]
        ]
        width = max(counts)
        return Batch(
            *(self._ids(tokens), self._ids(positions), self._ids(slots)),
            decodes=self._decodes(decoded, first),
            prefills=tuple(prefills),
            width=width,
            real_G=real_rows(self._ids(counts), width) if min(counts) < width else None,
        )

    def _slots(self, item: ScheduledTokens, start: int, stop: int) -> list[int]:
        """The KV cache's slots of the sequence's tokens from `start` to before `stop`."""
        size = self.cache.block_size
        blocks = item.sequence.block_table
        return [
            blocks[position // size] * size + position % size for position in range(start, stop)
        ]

    def _decodes(self, scheduled: list[ScheduledTokens], first: Decoded | None) -> Decodes | None:
        """A row for each token, drafts too: it sees what lies before it, and itself."""
        tables = [sequence.block_table for sequence in first.sequences] if first else []
        owners = list(range(len(tables)))
        lengths: list[int] = (first.positions + 1).tolist() if first else []
        for item in scheduled:
            owners += [len(tables)] * item.count
            tables.append(item.sequence.block_table)
            lengths += range(item.start + 1, item.stop + 1)
        return self._seen(tables, owners, lengths)

    def _seen(
        self, tables: list[list[int]], owners: list[int], lengths: list[int]
    ) -> Decodes | None:
        """What rows see: so many tokens each of the block table `tables[owner]`."""
        if not owners:
            return None
        longest = max(map(len, tables))
        padded = np.array([blocks + [0] * (longest - len(blocks)) for blocks in tables])
        planned = None
        if self.library:
            planned = self.library.plan()
            planned.fill(
                Requests.of(np.array(owners), np.array(lengths), padded, self.cache.block_size)
            )
        return Decodes(self._ids(padded[owners]), self._ids(lengths), planned)

    def _ids(self, values: list[int] | list[list[int]] | NDArray[np.int64]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self.device)


def at_fixed_shape(scheduled: list[ScheduledTokens]) -> bool:
    """Whether a step can run at a fixed shape: unless a prompt, or an answer that is recomputed,
    has become long."""
    return all(item.is_decode or item.stop <= FIXED_CONTEXT for item in scheduled)
