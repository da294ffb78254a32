"""Decode steps of fixed shape, which a GPU replays as CUDA graphs.

A step of a few thousand small kernels costs more to launch than to run. A graph is one launch, but
has fixed shapes and addresses: so one is captured for each of some batch sizes, and a step uses the
next larger one. Padding rows decode a dummy token into a spare block. Inputs take two copies to the
device at most; nothing waits for the GPU until the sampled tokens are read, of which the next
step's inputs are made. With speculative decoding a step verifies drafts, which are rows like all
others, and each pass of the MTP layer is a graph too.
"""

import logging
import time
from bisect import bisect_left
from typing import NamedTuple

import torch
from torch import Tensor

from ref_dsinfer.batch import Batch, Decodes, padded_rows, real_rows
from ref_dsinfer.cache import PagedCache
from ref_dsinfer.model import Model
from ref_dsinfer.rounding import ceil_div
from ref_dsinfer.sampler import Scores, greedy
from ref_dsinfer.scheduler import ScheduledTokens

log = logging.getLogger(__name__)

SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64)


def padded_sizes(max_batch: int) -> list[int]:
    """The batch sizes that are captured, up to `max_batch` itself."""
    sizes = list(SIZES)
    while sizes[-1] < max_batch:
        last = sizes[-1]
        sizes.append(last + (32 if last < 256 else 64 if last < 512 else 128))
    return [*(size for size in sizes if size < max_batch), max_batch]


class Row(NamedTuple):
    """A token that is decoded."""

    token: int
    position: int
    slot: int  # in the KV cache
    length: int  # tokens in the KV cache, this one among them
    source: int  # for a draft, the row of the hidden states that it is made from


IDS = len(Row._fields)


def decode_rows(
    item: ScheduledTokens, tokens: list[int], block_size: int, source: int = 0
) -> list[Row]:
    """The rows of one sequence's scheduled tokens; `source`: of the first one."""
    blocks = item.sequence.block_table
    return [
        Row(
            *(token, position),
            blocks[position // block_size] * block_size + position % block_size,
            *(position + 1, source + position - item.start),
        )
        for position, token in enumerate(tokens, item.start)
    ]


class Inputs:
    """What a step of decodes reads, at the same addresses in every step.

    The host's copies are pinned. They are written only once the step before has been read, so no
    copy to the device is still under way.
    """

    def __init__(
        self,
        max_rows: int,
        max_blocks: int,
        padding_block: int,
        block_size: int,
        device: torch.device,
        dp_size: int,
    ) -> None:
        """For `max_rows` tokens of sequences of `max_blocks` blocks; no sequence holds
        `padding_block`."""
        self._padding = Row(0, 0, padding_block * block_size, 1, 0)
        self._padding_table = [padding_block]
        self._dp_size = dp_size
        pinned = device.type == "cuda"
        tables = (max_rows, max_blocks)
        # The data-parallel ranks' numbers of tokens, then the ids of each row.
        self._ids = torch.zeros(dp_size + IDS * max_rows, dtype=torch.int64, pin_memory=pinned)
        self._tables = torch.full(tables, padding_block, dtype=torch.int64, pin_memory=pinned)
        self._device_ids = torch.zeros_like(self._ids, device=device)
        self._device_tables = torch.full_like(self._tables, padding_block, device=device)
        # The block table and its length that each row was written from, to write only changes.
        self._written: list[tuple[list[int], int]] = [([], 0)] * max_rows
        self._rows = self._tables.numpy()

    def batch(self, size: int) -> tuple[Batch, Tensor]:
        """The step's batch of `size` rows, always at the same addresses, and the rows' sources."""
        counts_R, ids = self._device_ids[: self._used(size)].tensor_split([self._dp_size])
        tokens, positions, slots, lengths, sources = ids.view(IDS, size)
        decodes = Decodes(self._device_tables[:size], lengths)
        batch = Batch(tokens, positions, slots, decodes, (), size, real_rows(counts_R, size))
        return batch, sources

    def fill(self, rows: list[Row], tables: list[list[int]], counts: list[int], size: int) -> None:
        """Copy one step's inputs to the device, padded to `size` rows.

        `tables`: each row's block table; `counts`: how many rows each data-parallel rank has.
        """
        used = self._used(size)
        self._ids[: self._dp_size] = torch.tensor(counts)
        padded = [*rows, *[self._padding] * (size - len(rows))]
        self._ids[self._dp_size : used].view(IDS, size).numpy()[:] = list(zip(*padded, strict=True))
        self._device_ids[:used].copy_(self._ids[:used], non_blocking=True)
        tables = [*tables, *[self._padding_table] * (size - len(rows))]
        changed = [self._write(row, table) for row, table in enumerate(tables)]
        if any(changed):
            self._device_tables[:size].copy_(self._tables[:size], non_blocking=True)

    def _used(self, size: int) -> int:
        return self._dp_size + IDS * size

    def _write(self, row: int, blocks: list[int]) -> bool:
        """Write a block table into a row; returns whether that changed anything.

        A sequence's table only grows, and is a new list once its blocks were released.
        """
        written, count = self._written[row]
        if written is blocks or written == blocks:
            if count == len(blocks):
                return False
        else:
            count = 0
        self._rows[row, count : len(blocks)] = blocks[count:]
        self._written[row] = (blocks, len(blocks))
        return True


class Decoder:
    """Runs steps of decodes, with or without drafts, at padded sizes; after `capture`, as CUDA
    graphs."""

    def __init__(
        self,
        model: Model,
        cache: PagedCache,
        padding_block: int,
        max_rows: int,
        max_model_len: int,
    ) -> None:
        """For `max_rows` tokens of sequences of up to `max_model_len`; no sequence may hold
        `padding_block`."""
        device, dp_size = model.rotations.device, model.ranks.dp_size
        max_blocks = ceil_div(max_model_len, cache.block_size)
        self.model, self.cache, self.sizes = model, cache, padded_sizes(max_rows)
        self.inputs = Inputs(max_rows, max_blocks, padding_block, cache.block_size, device, dp_size)
        dtype = model.embed_tokens.weight.dtype
        # Of the last step; all ranks' scores, but this rank's hidden states.
        self.hidden = torch.empty(max_rows, model.config.hidden, dtype=dtype, device=device)
        every, vocabulary = dp_size * max_rows, len(model.lm_head.weight)
        self._part = torch.empty(every, vocabulary, device=device)
        self._greedy = torch.empty(every, dtype=torch.int64, device=device)
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}

    @torch.inference_mode()
    def capture(self) -> None:
        """Capture the graphs, the largest first, so that the others fit into its memory."""
        start = time.monotonic()
        pool = None
        for size in reversed(self.sizes):
            self.inputs.fill([], [], [0] * self.model.ranks.dp_size, size)
            self._forward(size)  # compiles kernels and allocates workspaces, which a capture can't
            graph = torch.cuda.CUDAGraph()
            # Other threads (NCCL's watchdog) may go on calling CUDA.
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                self._forward(size)
            pool = graph.pool()
            self._graphs[size] = graph
        torch.cuda.synchronize()
        seconds = time.monotonic() - start
        log.info("captured CUDA graphs of %d batch sizes in %.1f s", len(self.sizes), seconds)

    def close(self) -> None:
        """Free the graphs, once none of them is running any more."""
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        for graph in self._graphs.values():
            graph.reset()
        self._graphs.clear()

    def decode(self, scheduled: list[ScheduledTokens], counts: list[int]) -> Scores:
        """Run this rank's decodes, of a step that has no others; see `run`."""
        rows: list[Row] = []
        tables: list[list[int]] = []
        for item in scheduled:
            tokens = item.sequence.ids(item.start, item.stop)
            rows += decode_rows(item, tokens, self.cache.block_size)
            tables += [item.sequence.block_table] * item.count
        return self.run(rows, tables, counts)

    @torch.inference_mode()
    def run(self, rows: list[Row], tables: list[list[int]], counts: list[int]) -> Scores:
        """Scores of all ranks' rows, valid until the next step, as are the `hidden` states of this
        rank's. `counts`: how many rows each data-parallel rank has."""
        size = self.sizes[bisect_left(self.sizes, max(counts))]
        self.inputs.fill(rows, tables, counts, size)
        if size in self._graphs:
            self._graphs[size].replay()
        else:
            self._forward(size)
        every = len(counts) * size
        return Scores(self._part[:every], self._greedy[:every], padded_rows(counts, size))

    def _forward(self, size: int) -> None:
        ranks = self.model.ranks
        hidden_TD = self._hidden_states(size)
        self.hidden[:size].copy_(hidden_TD)
        part_GV = self.model.logits(ranks.gather_tokens(hidden_TD, size))
        self._part[: len(part_GV)].copy_(part_GV)
        self._greedy[: len(part_GV)].copy_(greedy(part_GV, ranks))

    def _hidden_states(self, size: int) -> Tensor:
        batch, _ = self.inputs.batch(size)
        return self.model(batch, self.cache)


class Drafter(Decoder):
    """The same for passes of the MTP layer, each from the hidden states of a step before."""

    def __init__(self, decoder: Decoder, padding_block: int, max_model_len: int) -> None:
        """`decoder`: runs the model; both write the same `hidden` states."""
        rows = len(decoder.hidden)
        super().__init__(decoder.model, decoder.cache, padding_block, rows, max_model_len)
        self.hidden = decoder.hidden

    def _hidden_states(self, size: int) -> Tensor:
        batch, sources = self.inputs.batch(size)
        return self.model.draft(batch, self.hidden[sources], self.cache)
