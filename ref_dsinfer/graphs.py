"""Decode steps of fixed shape, which a GPU replays as CUDA graphs.

A step of a few thousand small kernels costs more to launch than to run. A graph is launched as one,
but has fixed shapes and addresses: so there is one for each of some batch sizes, a step takes the
next larger one, and the rows that are too many decode a token of nobody in a block that no sequence
owns. Inputs come over in two copies at most; nothing waits for the GPU until the sampled tokens are
read, which the next step's inputs are made of.
"""

import logging
import time
from bisect import bisect_left

import torch
from torch import Tensor

from ref_dsinfer.batch import Batch, Decodes
from ref_dsinfer.cache import PagedCache
from ref_dsinfer.model import Model
from ref_dsinfer.scheduler import Work

log = logging.getLogger(__name__)

SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64)


def padded_sizes(most: int) -> list[int]:
    """The batch sizes there are graphs for, up to `most` itself."""
    sizes = list(SIZES)
    while sizes[-1] < most:
        last = sizes[-1]
        sizes.append(last + (32 if last < 256 else 64 if last < 512 else 128))
    return [*(size for size in sizes if size < most), most]


class Inputs:
    """What a decode step reads, in the same place every step.

    The host's copies are pinned, and are written only when the step before has been read: no copy
    of them is then on its way.
    """

    def __init__(
        self, most: int, columns: int, spare: int, block_size: int, device: torch.device
    ) -> None:
        """For `most` sequences of `columns` blocks; `spare` is the block that nobody owns."""
        self._spare, self._block_size = spare, block_size
        pinned = device.type == "cuda"
        self._ids = torch.zeros(4 * most, dtype=torch.int64, pin_memory=pinned)
        self._table = torch.full((most, columns), spare, dtype=torch.int64, pin_memory=pinned)
        self._ids_there = torch.zeros_like(self._ids, device=device)
        self._table_there = torch.full_like(self._table, spare, device=device)
        # What each row of the table was made of, to write only what has changed.
        self._written: list[tuple[list[int], int]] = [([], 0)] * most
        self._rows = self._table.numpy()

    def batch(self, size: int) -> Batch:
        """The step's batch of so many rows, always at the same addresses."""
        tokens, positions, rows, lengths = self._ids_there[: 4 * size].view(4, size)
        decodes = Decodes(self._table_there[:size], lengths)
        return Batch(tokens, positions, rows, decodes, (), size)

    def fill(self, work: list[Work], size: int) -> None:
        """Send one step's input over, padded to `size` rows."""
        ids = self._ids[: 4 * size].view(4, size).numpy()
        count = len(work)
        ids[:, count:] = [[0], [0], [self._spare * self._block_size], [1]]
        if work:
            ids[:, :count] = list(zip(*map(self._of, work), strict=True))
        self._ids_there[: 4 * size].copy_(self._ids[: 4 * size], non_blocking=True)
        changed = [self._write(row, one.sequence.blocks) for row, one in enumerate(work)]
        changed += [self._write(row, [self._spare]) for row in range(count, size)]
        if any(changed):
            self._table_there[:size].copy_(self._table[:size], non_blocking=True)

    def _of(self, one: Work) -> tuple[int, int, int, int]:
        """A decode's token, position, row in the cache, and tokens in the cache."""
        block = one.sequence.blocks[one.start // self._block_size]
        row = block * self._block_size + one.start % self._block_size
        return one.sequence.ids(one.start, one.stop)[0], one.start, row, one.stop

    def _write(self, row: int, blocks: list[int]) -> bool:
        """Make a row of the table these blocks; returns whether it was not.

        A sequence's list only grows, and is another one once its blocks were given back.
        """
        known, count = self._written[row]
        if known is blocks or known == blocks:
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
        self, model: Model, cache: PagedCache, spare: int, most: int, longest: int
    ) -> None:
        """For `most` sequences of at most `longest` tokens; block `spare` must be nobody's."""
        device = model.rotations.device
        columns = -(-longest // cache.block_size)
        self.model, self.cache, self.sizes = model, cache, padded_sizes(most)
        self.inputs = Inputs(most, columns, spare, cache.block_size, device)
        kind = model.embed_tokens.weight.dtype
        self._hidden = torch.empty(most, model.config.hidden, dtype=kind, device=device)
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}

    @torch.inference_mode()
    def capture(self) -> None:
        """Make the graphs, the largest first, so that the others fit into its memory."""
        began = time.monotonic()
        pool = None
        for size in reversed(self.sizes):
            self.inputs.fill([], size)
            self._forward(size)  # compiles kernels and makes workspaces, which a capture must not
            graph = torch.cuda.CUDAGraph()
            # Other threads (NCCL's watchdog) may go on calling CUDA.
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                self._forward(size)
            pool = graph.pool()
            self._graphs[size] = graph
        torch.cuda.synchronize()
        took = time.monotonic() - began
        log.info("captured CUDA graphs of %d batch sizes in %.1f s", len(self.sizes), took)

    @torch.inference_mode()
    def run(self, work: list[Work], width: int) -> Tensor:
        """Hidden states [N, D] of this rank's work in a step of decodes only, of which a rank has
        `width` at most; they hold until the next step."""
        size = self.sizes[bisect_left(self.sizes, width)]
        self.inputs.fill(work, size)
        if size in self._graphs:
            self._graphs[size].replay()
        else:
            self._forward(size)
        return self._hidden[: len(work)]

    def _forward(self, size: int) -> None:
        self._hidden[:size].copy_(self.model(self.inputs.batch(size), self.cache))
