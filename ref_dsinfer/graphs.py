"""Decode steps of fixed shape, which a GPU replays as CUDA graphs.

A step of a few thousand small kernels costs more to launch than to run. A graph is one launch, but
has fixed shapes and addresses: so one is captured for each of some batch sizes, and a step uses the
next larger one. Padding rows decode a dummy token into a spare block. Inputs take two copies to the
device at most; nothing waits for the GPU until the sampled tokens are read, of which the next
step's inputs are made.
"""

import logging
import time
from bisect import bisect_left

import torch
from torch import Tensor

from ref_dsinfer.batch import Batch, Decodes, real_rows
from ref_dsinfer.cache import PagedCache
from ref_dsinfer.model import Model
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


class Inputs:
    """What a decode step reads, at the same addresses in every step.

    The host's copies are pinned. They are written only once the step before has been read, so no
    copy to the device is still under way.
    """

    def __init__(
        self,
        max_batch: int,
        max_blocks: int,
        padding_block: int,
        block_size: int,
        device: torch.device,
        dp_size: int,
    ) -> None:
        """For `max_batch` sequences of `max_blocks` blocks; no sequence holds `padding_block`."""
        self._padding_block, self._block_size = padding_block, block_size
        self._dp_size = dp_size
        pinned = device.type == "cuda"
        tables = (max_batch, max_blocks)
        # The data-parallel ranks' numbers of tokens, then four ids of each row.
        self._ids = torch.zeros(dp_size + 4 * max_batch, dtype=torch.int64, pin_memory=pinned)
        self._tables = torch.full(tables, padding_block, dtype=torch.int64, pin_memory=pinned)
        self._device_ids = torch.zeros_like(self._ids, device=device)
        self._device_tables = torch.full_like(self._tables, padding_block, device=device)
        # The block table and its length that each row was written from, to write only changes.
        self._written: list[tuple[list[int], int]] = [([], 0)] * max_batch
        self._rows = self._tables.numpy()

    def batch(self, size: int) -> Batch:
        """The step's batch of `size` rows, always at the same addresses."""
        counts_R, ids = self._device_ids[: self._dp_size + 4 * size].tensor_split([self._dp_size])
        tokens, positions, slots, lengths = ids.view(4, size)
        decodes = Decodes(self._device_tables[:size], lengths)
        return Batch(tokens, positions, slots, decodes, (), size, real_rows(counts_R, size))

    def fill(self, scheduled: list[ScheduledTokens], counts: list[int], size: int) -> None:
        """Copy one step's inputs to the device, padded to `size` rows.

        `counts`: how many tokens each data-parallel rank has.
        """
        used = self._dp_size + 4 * size
        self._ids[: self._dp_size] = torch.tensor(counts)
        ids = self._ids[self._dp_size : used].view(4, size).numpy()
        count = len(scheduled)
        ids[:, count:] = [[0], [0], [self._padding_block * self._block_size], [1]]
        if scheduled:
            ids[:, :count] = list(zip(*map(self._inputs_of, scheduled), strict=True))
        self._device_ids[:used].copy_(self._ids[:used], non_blocking=True)
        changed = [
            self._write(row, item.sequence.block_table) for row, item in enumerate(scheduled)
        ]
        changed += [self._write(row, [self._padding_block]) for row in range(count, size)]
        if any(changed):
            self._device_tables[:size].copy_(self._tables[:size], non_blocking=True)

    def _inputs_of(self, item: ScheduledTokens) -> tuple[int, int, int, int]:
        """A decode's token, position, slot in the KV cache, and tokens in the KV cache."""
        block = item.sequence.block_table[item.start // self._block_size]
        slot = block * self._block_size + item.start % self._block_size
        return item.sequence.ids(item.start, item.stop)[0], item.start, slot, item.stop

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
    """Runs decode steps at padded sizes; after `capture`, as CUDA graphs."""

    def __init__(
        self,
        model: Model,
        cache: PagedCache,
        padding_block: int,
        max_batch: int,
        max_model_len: int,
    ) -> None:
        """For `max_batch` sequences of `max_model_len` tokens; no sequence may hold
        `padding_block`."""
        device = model.rotations.device
        max_blocks = -(-max_model_len // cache.block_size)
        self.model, self.cache, self.sizes = model, cache, padded_sizes(max_batch)
        dp_size = model.ranks.dp_size
        self.inputs = Inputs(
            max_batch, max_blocks, padding_block, cache.block_size, device, dp_size
        )
        self._no_tokens = [0] * dp_size
        dtype = model.embed_tokens.weight.dtype
        self._hidden = torch.empty(max_batch, model.config.hidden, dtype=dtype, device=device)
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}

    @torch.inference_mode()
    def capture(self) -> None:
        """Capture the graphs, the largest first, so that the others fit into its memory."""
        start = time.monotonic()
        pool = None
        for size in reversed(self.sizes):
            self.inputs.fill([], self._no_tokens, size)
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

    @torch.inference_mode()
    def run(self, scheduled: list[ScheduledTokens], counts: list[int]) -> Tensor:
        """Hidden states [N, D] of this rank's decodes; valid until the next step.

        The step has decodes alone; `counts`: how many each data-parallel rank has.
        """
        size = self.sizes[bisect_left(self.sizes, max(counts))]
        self.inputs.fill(scheduled, counts, size)
        if size in self._graphs:
            self._graphs[size].replay()
        else:
            self._forward(size)
        return self._hidden[: len(scheduled)]

    def _forward(self, size: int) -> None:
        self._hidden[:size].copy_(self.model(self.inputs.batch(size), self.cache))
