"""All-reduce in symmetric memory: GPUs of one machine read one another's buffers, in one kernel.

A step's sums are small: NCCL takes most of its time for them to get started. Sums are in fp32 as
NCCL's are, and the same bits on all ranks:

- multimem: NVLink's switch adds up, each rank a part of the sums, and sends it to all ranks.
- one_shot: every rank reads all buffers and adds them up in the order of the ranks; without such a
  switch, where that is little to read.
"""

from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

Algorithm = Literal["multimem", "one_shot"]
# Assumed, not measured: NCCL is as fast for larger sums than the buffer, or where a rank would have
# to read more than this from others.
BUFFER_BYTES, ONE_SHOT_BYTES = 32 << 20, 4 << 20


def algorithm(size: int, world_size: int, multicast: bool) -> Algorithm | None:
    """How `size` bytes are added up; None: by NCCL. `multicast`: whether a switch can add up."""
    if not 0 < size <= BUFFER_BYTES:
        return None
    if multicast:
        return "multimem"
    return "one_shot" if size * (world_size - 1) <= ONE_SHOT_BYTES else None


class SymmetricMemory:
    """A buffer on each rank that all others can read; sums are made in it one after another."""

    def __init__(self, device: torch.device, world_size: int) -> None:
        """Every rank must call this. Raises: RuntimeError where GPUs can't read one another's
        memory."""
        from torch.distributed import _symmetric_memory

        assert dist.group.WORLD
        self._world_size, self._group = world_size, dist.group.WORLD.group_name
        self._buffer = _symmetric_memory.empty(
            BUFFER_BYTES // torch.float32.itemsize, dtype=torch.float32, device=device
        )
        self.multicast = bool(_symmetric_memory.rendezvous(self._buffer, self._group).multicast_ptr)

    def all_reduce(self, part: Tensor, dtype: torch.dtype) -> Tensor | None:
        """The sum over ranks in fp32, rounded once to `dtype`; None for sizes of which it is no
        faster than NCCL."""
        count = part.numel()
        size = count * self._buffer.itemsize
        chosen = algorithm(size, self._world_size, self.multicast)
        if chosen is None:
            return None
        own = self._buffer[:count].view(part.shape)
        own.copy_(part)
        # Both wait for all ranks at their end: the buffer may then be written again.
        if chosen == "multimem":
            torch.ops.symm_mem.multimem_all_reduce_(own, "sum", self._group)
            return own.to(dtype, copy=True)
        return torch.ops.symm_mem.one_shot_all_reduce(own, "sum", self._group).to(dtype)

    def is_right(self, rank: int) -> bool:
        """Whether sums of whole numbers, of which there is but one in fp32, are right."""
        for count in (1, 1000, self._buffer.numel() // 8):
            numbers = torch.arange(count, device=self._buffer.device) % 1000
            sums = self.all_reduce(numbers + rank, torch.float32)
            ranks = self._world_size * (self._world_size - 1) // 2
            if sums is not None and not torch.equal(
                sums, (numbers * self._world_size + ranks).float()
            ):
                return False
        return True
