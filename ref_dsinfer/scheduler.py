"""Which sequences run in a step. Deterministic: every rank has one and all of them agree."""

from collections import deque

from ref_dsinfer.sequence import Sequence

PREFILL_TOKENS = 4096  # prompts of at most this many tokens together go into one step


class Scheduler:
    """First come, first served; new prompts go before the next token of running answers.

    `running[i]` has slot i: a gap is filled by the last one at once.
    """

    def __init__(self, max_running: int) -> None:
        self.max_running = max_running  # sequences
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []

    @property
    def busy(self) -> bool:
        """Whether a step has anything to do."""
        return bool(self.waiting or self.running)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence."""
        self.waiting.append(sequence)

    def schedule(self) -> tuple[list[Sequence], bool]:
        """The sequences of this step, and whether it is a prefill of them or a decode."""
        admitted: list[Sequence] = []
        tokens = 0
        while self.waiting and len(self.running) < self.max_running:
            tokens += self.waiting[0].length
            if admitted and tokens > PREFILL_TOKENS:
                break
            sequence = self.waiting.popleft()
            sequence.slot = len(self.running)
            self.running.append(sequence)
            admitted.append(sequence)
        return (admitted, True) if admitted else (self.running.copy(), False)

    def remove(self, sequence: Sequence) -> Sequence | None:
        """Take a sequence out, waiting or running.

        Returns the sequence that now has its slot, if one had to move there; the cache must follow.
        """
        if sequence.slot < 0:
            self.waiting.remove(sequence)
            return None
        last = self.running.pop()
        gap, sequence.slot = sequence.slot, -1
        if last is sequence:
            return None
        self.running[gap] = last
        last.slot = gap
        return last
