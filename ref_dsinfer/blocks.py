"""The cache's blocks, as numbers: which are free.

Who holds one is the holder's business; the same calls in the same order give every rank the same
numbers.
"""

import heapq


class BlockPool:
    """Numbers from 0 on. The lowest are taken first, so that those in use stay close together."""

    def __init__(self, blocks: int, block_size: int) -> None:
        """`block_size` is in tokens."""
        self.blocks, self.block_size = blocks, block_size
        self._free = list(range(blocks))  # a heap

    @property
    def free(self) -> int:
        """How many can be taken."""
        return len(self._free)

    def needed(self, tokens: int) -> int:
        """Blocks that hold so many tokens."""
        return -(-tokens // self.block_size)

    def take(self, count: int) -> list[int]:
        """So many free blocks; there must be as many."""
        return [heapq.heappop(self._free) for _ in range(count)]

    def give(self, blocks: list[int]) -> None:
        """Take blocks back."""
        for block in blocks:
            heapq.heappush(self._free, block)
