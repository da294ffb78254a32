"""Steps of fixed shape, which a GPU replays as CUDA graphs.

A step of a few thousand small kernels costs more to launch than to run. A graph is one launch, but
has fixed shapes and addresses: so one is captured for each of some numbers of rows, and a step uses
the next larger one. A row is a token that attends to its sequence's blocks in the KV cache, as far
as itself: a decode, a draft to verify, or a prompt's token, since a layer writes all latents before
it attends. Padding rows decode a dummy token into a spare block. Inputs take two copies to the
device at most; nothing waits for the GPU until the sampled tokens are read, of which the next
step's inputs are made. With speculative decoding each pass of the MTP layer is a graph too.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from ref_dsinfer.batch import Batch, Decodes, padded_rows, real_rows
from ref_dsinfer.cache import PagedCache
from ref_dsinfer.decoding import Column, Decoded
from ref_dsinfer.kernels.flashinfer_mla import FlashInfer, Plan, Requests
from ref_dsinfer.model import Model
from ref_dsinfer.rounding import ceil_div
from ref_dsinfer.sampler import Scores, greedy
from ref_dsinfer.scheduler import ScheduledTokens

GraphPool = torch.cuda._POOL_HANDLE  # the memory of graphs
_Ids = TypeVar("_Ids", Tensor, Column)

SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64)


def padded_sizes(max_rows: int) -> list[int]:
    """The numbers of rows that are captured, up to `max_rows` itself."""
    sizes = list(SIZES)
    while sizes[-1] < max_rows:
        last = sizes[-1]
        sizes.append(last + (32 if last < 256 else 64 if last < 512 else 128))
    return [*(size for size in sizes if size < max_rows), max_rows]


@dataclass(frozen=True)
class Limits:
    """What the largest step of a rank has."""

    rows: int  # tokens
    sequences: int
    samples: int  # rows after which a token is sampled
    length: int  # tokens of a sequence


@dataclass
class Rows:
    """This rank's rows of a step, by columns: first those of decoding sequences, if there are any.

    The lists hold the others.
    """

    block_size: int
    decoded: Decoded | None = None
    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)  # in the KV cache
    lengths: list[int] = field(default_factory=list)  # tokens in the KV cache, this one among them
    tables: list[int] = field(default_factory=list)  # its sequence's `row`: which block table
    # For drafts, the rows of the hidden states that they are made from.
    sources: list[int] = field(default_factory=list)
    # By `row`, those that may have changed since the step before.
    block_tables: dict[int, list[int]] = field(default_factory=dict)

    def add(self, item: ScheduledTokens, tokens: list[int], source: int = 0) -> None:
        """Add one sequence's scheduled tokens; `source`: of the first one."""
        size, blocks = self.block_size, item.sequence.block_table
        self.tokens += tokens
        self.positions += range(item.start, item.stop)
        self.slots += [
            blocks[position // size] * size + position % size
            for position in range(item.start, item.stop)
        ]
        self.lengths += range(item.start + 1, item.stop + 1)
        self.tables += [item.sequence.row] * item.count
        self.sources += range(source, source + item.count)
        self.block_tables[item.sequence.row] = blocks

    @property
    def columns(self) -> list[list[int] | Column]:
        others: list[list[int] | Column] = [
            *(self.tokens, self.positions, self.slots),
            *(self.lengths, self.tables, self.sources),
        ]
        if not self.decoded:
            return others
        one = self.decoded
        firsts: list[list[int] | Column] = [
            *(one.tokens, one.positions, one.slots),
            *(one.positions + 1, one.rows, np.zeros_like(one.rows)),
        ]
        if not self.tokens:
            return firsts
        return [np.concatenate(both) for both in zip(firsts, others, strict=True)]

    def __len__(self) -> int:
        return len(self.tokens) + (len(self.decoded.sequences) if self.decoded else 0)


COLUMNS = len(Rows(1).columns)


class Inputs:
    """What a step reads, at the same addresses in every step.

    The host's copies are pinned. They are written only once the step before has been read, so no
    copy to the device is still under way.
    """

    def __init__(
        self,
        limits: Limits,
        padding_block: int,
        block_size: int,
        device: torch.device,
        dp_size: int,
        library: FlashInfer | None = None,
        sizes: Sequence[int] = (),
    ) -> None:
        """No sequence holds `padding_block`. With a `library`, `sizes` are those of steps."""
        self._limits, self._dp_size, self._block_size = limits, dp_size, block_size
        # A row of padding, of which each value is one of a column.
        self._padding = (0, 0, padding_block * block_size, 1, limits.sequences, 0)
        pinned = device.type == "cuda"
        # The data-parallel ranks' numbers of tokens, the rows by columns, those to sample after.
        numbers = dp_size + COLUMNS * limits.rows + limits.samples
        self._ids = torch.zeros(numbers, dtype=torch.int64, pin_memory=pinned)
        tables = (limits.sequences + 1, ceil_div(limits.length, block_size))  # the last: of padding
        self._tables = torch.full(tables, padding_block, dtype=torch.int64, pin_memory=pinned)
        self._device_ids = self._ids.to(device)
        self._device_tables = self._tables.to(device)
        # The block table and its length that each was written from, to write only changes.
        self._written: list[tuple[list[int], int]] = [([], 0)] * limits.sequences
        self._host_ids, self._host_tables = self._ids.numpy(), self._tables.numpy()
        self._plans: dict[int, Plan] = {}
        if library:
            blocks = self._tables[1:].numel() + limits.rows  # each row of padding sees one
            table = torch.zeros(blocks, dtype=torch.int32, device=device)
            self._plans = {size: library.fixed_plan(size, table) for size in sizes}
            for size in sizes:  # takes the memory that it needs
                self._plan(size, np.full(size, limits.sequences), np.ones(size, np.int64))

    def samples(self, size: int) -> int:
        """The most rows of a step of `size` rows after which a token is sampled."""
        return min(size, self._limits.samples)

    def batch(self, size: int) -> tuple[Batch, Tensor, Tensor]:
        """The step's batch of `size` rows, always at the same addresses; the rows' sources, and the
        rows to sample after."""
        counts_R, ids, sampled_S = self._split(self._device_ids, size)
        tokens, positions, slots, lengths, tables, sources = ids.view(COLUMNS, size)
        decodes = Decodes(self._device_tables[tables], lengths, self._plans.get(size))
        real_G = real_rows(counts_R, size)
        return Batch(tokens, positions, slots, decodes, (), size, real_G), sources, sampled_S

    def fill(self, step: Rows, sampled: list[int] | Column, counts: list[int], size: int) -> None:
        """Copy one step's inputs to the device, padded to `size` rows.

        `sampled`: rows to sample after; `counts`: how many rows each data-parallel rank has.
        """
        counts_R, ids, sampled_S = self._split(self._host_ids, size)
        counts_R[:] = counts
        rows = ids.reshape(COLUMNS, size)
        for to, column, padding in zip(rows, step.columns, self._padding, strict=True):
            to[: len(column)] = column
            to[len(column) :] = padding
        sampled_S[: len(sampled)] = sampled
        sampled_S[len(sampled) :] = 0
        used = len(counts_R) + len(ids) + len(sampled_S)
        self._device_ids[:used].copy_(self._ids[:used], non_blocking=True)
        changed = [row for row, blocks in step.block_tables.items() if self._write(row, blocks)]
        if changed:
            count = max(changed) + 1
            self._device_tables[:count].copy_(self._tables[:count], non_blocking=True)
        if self._plans:
            _, _, _, lengths, owners, _ = rows
            self._plan(size, owners, lengths)

    def _plan(self, size: int, owners: Column, lengths: Column) -> None:
        """Plan the attention of rows that see so many tokens of their owners' block tables.

        A plan has as many requests as rows, some of them empty: what a graph has captured depends
        on their mean size.
        """
        requests = Requests.of(owners, lengths, self._host_tables, self._block_size, count=size)
        self._plans[size].fill(requests)

    def _split(self, ids: _Ids, size: int) -> tuple[_Ids, _Ids, _Ids]:
        rows = self._dp_size + COLUMNS * size
        end = rows + self.samples(size)
        return ids[: self._dp_size], ids[self._dp_size : rows], ids[rows:end]

    def _write(self, number: int, blocks: list[int]) -> bool:
        """Write a block table; returns whether that changed anything.

        A sequence's table only grows, and is a new list once its blocks were released.
        """
        written, count = self._written[number]
        if written is blocks or written == blocks:
            if count == len(blocks):
                return False
        else:
            count = 0
        self._host_tables[number, count : len(blocks)] = blocks[count:]
        self._written[number] = (blocks, len(blocks))
        return True


class Decoder:
    """Runs steps at padded sizes; after `capture`, as CUDA graphs."""

    def __init__(
        self,
        model: Model,
        cache: PagedCache,
        padding_block: int,
        limits: Limits,
        library: FlashInfer | None = None,
    ) -> None:
        """No sequence may hold `padding_block`. `library`: attends in place of our kernel."""
        device, dp_size = model.rotations.device, model.ranks.dp_size
        self.model, self.cache, self.limits, self.library = model, cache, limits, library
        self.sizes = padded_sizes(limits.rows)
        self.inputs = Inputs(
            *(limits, padding_block, cache.block_size, device, dp_size, library, self.sizes)
        )
        dtype = model.embed_tokens.weight.dtype
        # Of the last step; all ranks' scores, but this rank's hidden states.
        self.hidden = torch.empty(limits.rows, model.config.hidden, dtype=dtype, device=device)
        every, vocabulary = dp_size * limits.samples, len(model.lm_head.weight)
        self._part = torch.empty(every, vocabulary, device=device)
        self._greedy = torch.empty(every, dtype=torch.int64, device=device)
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}

    @torch.inference_mode()
    def capture(self, sizes: list[int], pool: GraphPool | None = None) -> GraphPool:
        """Capture graphs of so many rows, the largest first, so that the others fit into its
        memory, `pool`; returns that.

        Graphs may share it that never run at the same time: none reads what another has left there.
        """
        pool = pool or torch.cuda.graph_pool_handle()
        for size in sorted(sizes, reverse=True):
            self.inputs.fill(Rows(self.cache.block_size), [], [0] * self.model.ranks.dp_size, size)
            self._forward(size)  # compiles kernels and allocates workspaces, which a capture can't
            graph = torch.cuda.CUDAGraph()
            # Other threads (NCCL's watchdog) may go on calling CUDA.
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                self._forward(size)
            self._graphs[size] = graph
        torch.cuda.synchronize()
        return pool

    def close(self) -> None:
        """Free the graphs, once none of them is running any more."""
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        for graph in self._graphs.values():
            graph.reset()
        self._graphs.clear()

    def decode(
        self, step: Rows, scheduled: list[ScheduledTokens], counts: list[int], samples: list[int]
    ) -> Scores:
        """Run this rank's scheduled tokens behind those of `step`, which are decoded; see `run`."""
        decoded, others = np.arange(len(step)), list[int]()
        for item in scheduled:
            step.add(item, item.sequence.ids(item.start, item.stop))
            count = len(step)
            others += range(count - item.samples, count)
        sampled = np.concatenate([decoded, np.array(others, np.int64)])
        return self.run(step, sampled, counts, samples)

    @torch.inference_mode()
    def run(
        self,
        step: Rows,
        sampled: list[int] | Column,
        counts: list[int],
        samples: list[int],
    ) -> Scores:
        """Scores of all ranks' rows after which a token is sampled, valid until the next step, as
        are the `hidden` states of this rank's rows.

        `sampled` are those rows of this rank; `counts` and `samples`: how many rows, and how many
        of those, each data-parallel rank has.
        """
        size = self.sizes[bisect_left(self.sizes, max(counts))]
        self.inputs.fill(step, sampled, counts, size)
        if size in self._graphs:
            self._graphs[size].replay()
        else:
            self._forward(size)
        width = self.inputs.samples(size)
        every = len(counts) * width
        return Scores(self._part[:every], self._greedy[:every], padded_rows(samples, width))

    def _forward(self, size: int) -> None:
        ranks = self.model.ranks
        batch, sources, sampled_S = self.inputs.batch(size)
        hidden_TD = self._hidden_states(batch, sources)
        self.hidden[:size].copy_(hidden_TD)
        hidden_GD = ranks.gather_tokens(hidden_TD[sampled_S], len(sampled_S))
        part_GV = self.model.logits(hidden_GD)
        self._part[: len(part_GV)].copy_(part_GV)
        self._greedy[: len(part_GV)].copy_(greedy(part_GV, ranks))

    def _hidden_states(self, batch: Batch, sources: Tensor) -> Tensor:
        return self.model(batch, self.cache)


class Drafter(Decoder):
    """The same for passes of the MTP layer, each from the hidden states of a step before."""

    def __init__(self, decoder: Decoder, padding_block: int) -> None:
        """`decoder`: runs the model; both write the same `hidden` states."""
        limits = replace(decoder.limits, samples=decoder.limits.sequences)
        super().__init__(decoder.model, decoder.cache, padding_block, limits, decoder.library)
        self.hidden = decoder.hidden

    def _hidden_states(self, batch: Batch, sources: Tensor) -> Tensor:
        return self.model.draft(batch, self.hidden[sources], self.cache)
