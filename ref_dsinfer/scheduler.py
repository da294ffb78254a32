"""Which tokens run in a step. Deterministic: every rank has a scheduler, and all of them agree."""

from collections import Counter, deque
from dataclasses import dataclass

from ref_dsinfer.blocks import BlockPool
from ref_dsinfer.decoding import Decoding
from ref_dsinfer.rounding import ceil_div
from ref_dsinfer.sequence import Sequence

STEP_TOKENS = 2048  # token budget of a step: long prompts are prefilled in chunks, beside decodes


@dataclass(frozen=True)
class ScheduledTokens:
    """Tokens of one sequence that run in a step."""

    sequence: Sequence
    start: int  # position of the first; all before it are in the KV cache
    count: int
    samples: int  # tokens to sample: after the last token and each draft; 0 within a prompt

    @property
    def stop(self) -> int:
        """Position after the last; the KV cache then holds all tokens up to there."""
        return self.start + self.count

    @property
    def is_decode(self) -> bool:
        """Whether this is one token, with its drafts, that attends to the KV cache."""
        return self.start > 0 and self.count == max(self.samples, 1)


def rank_tokens(step_tokens: int, ranks: int, running: int, drafts: int) -> int:
    """A data-parallel rank's part of the token budget: so much that all ranks, padded to the
    largest, run no more than the whole, but enough for its `running` sequences."""
    return max(ceil_div(step_tokens, ranks), running * (1 + drafts))


class Scheduler:
    """First come, first served. In every step each running sequence gets its next token, then
    prompts get what is left of the token budget. A sequence is admitted when there are blocks for
    all its tokens. Where a running one finds no free block, the youngest is preempted: its blocks
    are released, and it is recomputed later.

    With data-parallel attention every rank has a KV cache of its own, and all of this holds for
    each rank's sequences. A sequence is assigned to a rank when it is admitted: to the one with the
    fewest running.

    Running sequences that the engine adds to `decoding` run their last token without being listed.
    """

    def __init__(
        self,
        pools: list[BlockPool],
        max_running: int,
        step_tokens: int = STEP_TOKENS,
        drafts: int = 0,
    ) -> None:
        """One pool for each data-parallel rank. Each must hold the longest sequence, or it may
        never finish. At most `drafts` drafts follow a running sequence's last token."""
        self.pools = pools
        self.max_running = max_running  # sequences
        self.rank_running = ceil_div(max_running, len(pools))  # sequences of one rank
        self.step_tokens = rank_tokens(step_tokens, len(pools), self.rank_running, drafts)
        # Beyond a sequence's tokens the KV cache takes its drafts, and while the next drafts are
        # made, those too if all of these were accepted; the last draft is not run itself.
        self.lookahead = max(2 * drafts - 1, 0)
        self.decoding = Decoding(max_running, len(pools), pools[0].block_size)
        # Each rank's numbers for its running sequences.
        self._rows = [BlockPool(self.rank_running, 1) for _ in pools]
        self.preempted = 0  # times that a sequence was preempted
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # the oldest first

    @property
    def busy(self) -> bool:
        """Whether a step has anything to do."""
        return bool(self.waiting or self.running)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence."""
        self.waiting.append(sequence)

    def schedule(self) -> list[ScheduledTokens]:
        """The tokens of one step beside those in `decoding`, by data-parallel rank and decodes
        first; they count as run."""
        for place, sequence in self.decoding.short():
            if sequence.decodes and self._allocate(sequence):  # else another one has preempted it
                self.decoding.grow(place, sequence)
        budget = [self.step_tokens - count for count in self.decoding.counts]
        scheduled: list[ScheduledTokens] = []
        # Preemption shortens the list, from `position` on.
        position = 0 if len(self.decoding) < len(self.running) else len(self.running)
        while position < len(self.running):
            sequence = self.running[position]
            if sequence.decodes:
                position += 1
            elif self._allocate(sequence):
                scheduled.append(self._schedule(sequence, budget))
                position += 1
        while self._admit(budget):
            scheduled.append(self._schedule(self.running[-1], budget))
        return sorted(scheduled, key=lambda item: (item.sequence.dp_rank, not item.is_decode))

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out, waiting or running, and release its blocks."""
        if sequence in self.running:
            self.running.remove(sequence)
            self._release(sequence)
        else:
            self.waiting.remove(sequence)

    def shrink(self) -> bool:
        """Preempt all running sequences, of a step that failed, and halve the limits of a step.

        False if they can't get any smaller.
        """
        if self.max_running == 1 and self.step_tokens == 1:
            return False
        for sequence in reversed(self.running[:]):
            self._preempt(sequence)
        self.max_running = max(1, self.max_running // 2)
        self.rank_running = ceil_div(self.max_running, len(self.pools))
        self.step_tokens = max(1, self.step_tokens // 2)
        return True

    def _schedule(self, sequence: Sequence, budget: list[int]) -> ScheduledTokens:
        """As many of the sequence's tokens as its rank's budget allows."""
        start = sequence.cached
        sequence.cached = min(sequence.length, start + budget[sequence.dp_rank])
        samples, drafts = 0, 0
        if sequence.cached == sequence.length:
            drafts = len(sequence.drafts)
            samples = 1 + drafts
        item = ScheduledTokens(sequence, start, sequence.cached + drafts - start, samples)
        budget[sequence.dp_rank] -= item.count
        return item

    def _needed(self, sequence: Sequence, pool: BlockPool) -> int:
        """Blocks for all that a step may write of a sequence."""
        return pool.needed(min(sequence.length + self.lookahead, sequence.limit))

    def _allocate(self, sequence: Sequence) -> bool:
        """Give a running sequence the blocks it needs, preempting younger ones for them.

        False if it was the youngest of its rank and had to be preempted itself.
        """
        pool = self.pools[sequence.dp_rank]
        missing = self._needed(sequence, pool) - len(sequence.block_table)
        while pool.free < missing:
            youngest = next(
                other for other in reversed(self.running) if other.dp_rank == sequence.dp_rank
            )
            self._preempt(youngest)
            if youngest is sequence:
                return False
        sequence.block_table += pool.allocate(missing)
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._release(sequence)
        self.waiting.appendleft(sequence)
        self.preempted += 1

    def _admit(self, budget: list[int]) -> bool:
        """Start the first waiting sequence on a rank with budget and blocks, if there is one."""
        if not self.waiting or len(self.running) >= self.max_running:
            return False
        sequence = self.waiting[0]
        running = Counter(other.dp_rank for other in self.running)
        candidates = [
            rank
            for rank, pool in enumerate(self.pools)
            if budget[rank]
            and running[rank] < self.rank_running
            # a free block for each running sequence, or the next step might preempt this one again
            and pool.free >= min(self._needed(sequence, pool) + running[rank], pool.blocks)
        ]
        if not candidates:
            return False
        sequence.dp_rank = min(candidates, key=lambda rank: (running[rank], -self.pools[rank].free))
        pool = self.pools[sequence.dp_rank]
        sequence.block_table = pool.allocate(self._needed(sequence, pool))
        [sequence.row] = self._rows[sequence.dp_rank].allocate(1)
        self.running.append(self.waiting.popleft())
        return True

    def _release(self, sequence: Sequence) -> None:
        if sequence.decodes:
            self.decoding.leave(sequence)
        self._rows[sequence.dp_rank].release([sequence.row])
        self.pools[sequence.dp_rank].release(sequence.block_table)
        sequence.block_table = []
        sequence.drafts = []
        sequence.cached = 0
