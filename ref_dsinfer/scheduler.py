"""Which tokens run in a step. Deterministic: every rank has one and all of them agree."""

from collections import deque
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


class Scheduler:
    """First come, first served. Running answers get their next token in every step, then prompts
    get what is left of its tokens. A sequence is admitted when there are blocks for all it has;
    where a running one finds no block, the youngest gives its own back and starts over later.
    """

    def __init__(
        self,
        pool: BlockPool,
        max_running: int,
        step_tokens: int = STEP_TOKENS,
        drafts: int = 0,
    ) -> None:
        """The pool must hold the longest sequence, or an answer may never end. At most so many
        `drafts` follow a running answer's last token."""
        self.pool = pool
        self.max_running = max_running  # sequences
        self.step_tokens = max(step_tokens, max_running * (1 + drafts))
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
        """The work of one step, decodes first; it counts as done from now on."""
        left = self.step_tokens
        work: list[Work] = []
        position = 0
        while position < len(self.running):  # preemption shortens the list from its end
            sequence = self.running[position]
            if self._has_room(sequence):
                work.append(self._run(sequence, left))
                left -= work[-1].count
            position += 1
        while left and self._admits():
            work.append(self._run(self.running[-1], left))
            left -= work[-1].count
        return sorted(work, key=lambda one: not one.decodes)

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out, waiting or running, and its blocks back."""
        if sequence in self.running:
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)
        self._release(sequence)

    def _run(self, sequence: Sequence, tokens: int) -> Work:
        """As many of the sequence's tokens as there are and may be."""
        start = sequence.cached
        sequence.cached = min(sequence.length, start + tokens)
        if sequence.cached < sequence.length:
            return Work(sequence, start, sequence.cached - start, draws=0)
        drafts = len(sequence.drafts)
        return Work(sequence, start, sequence.cached + drafts - start, draws=1 + drafts)

    def _needed(self, sequence: Sequence) -> int:
        """Blocks for all that a step may write of a sequence."""
        return self.pool.needed(min(sequence.length + self.spare, sequence.limit))

    def _has_room(self, sequence: Sequence) -> bool:
        """Whether all tokens of a running sequence have their blocks, at the cost of younger ones.

        Not if it is the youngest and there is no block left: it has then been preempted itself.
        """
        missing = self._needed(sequence) - len(sequence.blocks)
        while self.pool.free < missing:
            youngest = self.running.pop()
            self._release(youngest)
            self.waiting.appendleft(youngest)
            self.preempted += 1
            if youngest is sequence:
                return False
        sequence.blocks += self.pool.take(missing)
        return True

    def _admits(self) -> bool:
        """Admit the first that waits, if it may run."""
        if not self.waiting or len(self.running) >= self.max_running:
            return False
        sequence = self.waiting[0]
        needed = self._needed(sequence)
        # a block to spare for each running answer, or the next step might preempt it again
        if self.pool.free < min(needed + len(self.running), self.pool.blocks):
            return False
        sequence.blocks = self.pool.take(needed)
        self.running.append(self.waiting.popleft())
        return True

    def _release(self, sequence: Sequence) -> None:
        self.pool.give(sequence.blocks)
        sequence.blocks = []
        sequence.drafts = []
        sequence.cached = 0
