"""Which tokens run in a step. Deterministic: every rank has one and all of them agree."""

from collections import Counter, deque
from dataclasses import dataclass

from ref_dsinfer.blocks import BlockPool
from ref_dsinfer.sequence import Sequence

STEP_TOKENS = 2048  # at most in one step: long prompts are read in parts, beside running answers


@dataclass(frozen=True)
class Work:
    """Tokens of one sequence to run in a step."""

    sequence: Sequence
    start: int  # position of the first; what lies before it is in the cache
    count: int
    draws: int  # tokens to draw: after the last one, and after each before a guessed one; or none

    @property
    def stop(self) -> int:
        """Position after the last; the cache then holds the sequence's tokens up to there."""
        return self.start + self.count

    @property
    def decodes(self) -> bool:
        """Whether this is one token, and guesses of what follows it, that attend to the cache."""
        return self.start > 0 and self.count == max(self.draws, 1)


def share_of(total: int, shares: int) -> int:
    """The largest of so many equal shares, in whole numbers."""
    return -(-total // shares)


class Scheduler:
    """First come, first served. Running answers get their next token in every step, then prompts
    get what is left of its tokens. A sequence is admitted when there are blocks for all it has;
    where a running one finds no block, the youngest gives its own back and starts over later.

    Where ranks have caches of their own, all of this holds for each one's share of the sequences. A
    sequence gets its share when it is admitted: the one with the fewest running.
    """

    def __init__(
        self,
        pools: list[BlockPool],
        max_running: int,
        step_tokens: int = STEP_TOKENS,
        drafts: int = 0,
    ) -> None:
        """One pool a share. Each must hold the longest sequence, or an answer may never end. At
        most so many `drafts` follow a running answer's last token."""
        self.pools = pools
        self.max_running = max_running  # sequences
        self.share_running = share_of(max_running, len(pools))
        # of a share: so all together, padded to the largest, are no more than one would be
        least = self.share_running * (1 + drafts)
        self.step_tokens = max(share_of(step_tokens, len(pools)), least)
        # Beyond a sequence's tokens the cache takes its drafts, and where all of them are right
        # the next ones while they are made; the last of these is not run itself.
        self.spare = max(2 * drafts - 1, 0)
        self.preempted = 0  # times that a sequence had to start over
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # the oldest first

    @property
    def busy(self) -> bool:
        """Whether a step has anything to do."""
        return bool(self.waiting or self.running)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence."""
        self.waiting.append(sequence)

    def schedule(self) -> list[Work]:
        """The work of one step, share by share and in each decodes first; it counts as done."""
        left = [self.step_tokens] * len(self.pools)
        work: list[Work] = []
        position = 0
        while position < len(self.running):  # preemption shortens the list, from here on
            sequence = self.running[position]
            if self._has_room(sequence):
                work.append(self._run(sequence, left))
                position += 1
        while self._admits(left):
            work.append(self._run(self.running[-1], left))
        return sorted(work, key=lambda one: (one.sequence.share, not one.decodes))

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out, waiting or running, and its blocks back."""
        if sequence in self.running:
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)
        self._release(sequence)

    def _run(self, sequence: Sequence, left: list[int]) -> Work:
        """As many of the sequence's tokens as there are and are left to its share."""
        start = sequence.cached
        sequence.cached = min(sequence.length, start + left[sequence.share])
        draws, drafts = 0, 0
        if sequence.cached == sequence.length:
            drafts = len(sequence.drafts)
            draws = 1 + drafts
        work = Work(sequence, start, sequence.cached + drafts - start, draws)
        left[sequence.share] -= work.count
        return work

    def _needed(self, sequence: Sequence, pool: BlockPool) -> int:
        """Blocks for all that a step may write of a sequence."""
        return pool.needed(min(sequence.length + self.spare, sequence.limit))

    def _has_room(self, sequence: Sequence) -> bool:
        """Whether all tokens of a running sequence have their blocks, at the cost of younger ones.

        Not if it is its share's youngest and no block is left: it has then been preempted itself.
        """
        pool = self.pools[sequence.share]
        missing = self._needed(sequence, pool) - len(sequence.blocks)
        while pool.free < missing:
            youngest = next(o for o in reversed(self.running) if o.share == sequence.share)
            self.running.remove(youngest)
            self._release(youngest)
            self.waiting.appendleft(youngest)
            self.preempted += 1
            if youngest is sequence:
                return False
        sequence.blocks += pool.take(missing)
        return True

    def _admits(self, left: list[int]) -> bool:
        """Admit the first that waits, if it may run, to a share to which tokens are left."""
        if not self.waiting or len(self.running) >= self.max_running:
            return False
        sequence = self.waiting[0]
        running = Counter(one.share for one in self.running)
        able = [
            share
            for share, pool in enumerate(self.pools)
            if left[share]
            and running[share] < self.share_running
            # a block to spare for each running answer, or the next step might preempt it again
            and pool.free >= min(self._needed(sequence, pool) + running[share], pool.blocks)
        ]
        if not able:
            return False
        sequence.share = min(able, key=lambda share: (running[share], -self.pools[share].free))
        pool = self.pools[sequence.share]
        sequence.blocks = pool.take(self._needed(sequence, pool))
        self.running.append(self.waiting.popleft())
        return True

    def _release(self, sequence: Sequence) -> None:
        self.pools[sequence.share].give(sequence.blocks)
        sequence.blocks = []
        sequence.drafts = []
        sequence.cached = 0
