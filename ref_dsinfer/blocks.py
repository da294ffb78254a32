"""Which blocks of the KV cache are free.

A block is a number here; who holds it is the caller's business. The same calls in the same order
give every rank the same numbers.
"""

import heapq

from ref_dsinfer.rounding import ceil_div


class BlockPool:
    """Blocks are numbered from 0. The lowest free ones are allocated first, so that the blocks in
    use stay close together."""

    def __init__(self, blocks: int, block_size: int) -> None:
        """`block_size` is in tokens."""
        self.blocks, self.block_size = blocks, block_size
        self._free = list(range(blocks))  # a heap

    @property
    def free(self) -> int:
        """How many blocks are free."""
        return len(self._free)

    def needed(self, tokens: int) -> int:
        """Blocks that hold this many tokens."""
        return ceil_div(tokens, self.block_size)

    def allocate(self, count: int) -> list[int]:
        """`count` blocks; as many must be free."""
        return [heapq.heappop(self._free) for _ in range(count)]

    def release(self, blocks: list[int]) -> None:
        """Make blocks free again."""
        for block in blocks:
            heapq.heappush(self._free, block)
