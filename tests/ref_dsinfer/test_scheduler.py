"""Requests come and go; the scheduler and the cache are held against a plain model of both."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ref_dsinfer.scheduler import PREFILL_TOKENS, Scheduler
from ref_dsinfer.sequence import Sequence

SLOTS = 4


class Traffic(RuleBasedStateMachine):
    """`memory[slot]` stands for the cache: whose latents lie there."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler(SLOTS)
        self.memory: list[int | None] = [None] * SLOTS
        self.arrived: list[Sequence] = []
        self.started: list[int] = []
        self.number = 0

    @rule(length=st.sampled_from([1, 100, PREFILL_TOKENS // 2, PREFILL_TOKENS, PREFILL_TOKENS * 2]))
    def add(self, length: int) -> None:
        sequence = Sequence(self.number, (0,) * length, 8)
        self.number += 1
        self.arrived.append(sequence)
        self.scheduler.add(sequence)

    @rule()
    def step(self) -> None:
        if not self.scheduler.busy:
            return
        running_before = len(self.scheduler.running)
        waiting_before = len(self.scheduler.waiting)
        sequences, prefill = self.scheduler.schedule()
        assert sequences
        assert prefill == (waiting_before > 0 and running_before < SLOTS)
        if prefill:
            assert len(sequences) == 1 or sum(s.length for s in sequences) <= PREFILL_TOKENS
            for sequence in sequences:
                self.memory[sequence.slot] = sequence.id
                self.started.append(sequence.id)
        else:
            assert [s.slot for s in sequences] == list(range(running_before))
            for sequence in sequences:
                sequence.answer_ids.append(0)

    @rule(choice=st.integers(0, 99))
    def remove(self, choice: int) -> None:
        """One ends, or is aborted, at any place."""
        if not self.arrived:
            return
        sequence = self.arrived.pop(choice % len(self.arrived))
        slot = sequence.slot
        moved = self.scheduler.remove(sequence)
        if moved:
            assert moved.slot == slot
            self.memory[slot] = self.memory[len(self.scheduler.running)]

    @invariant()
    def every_slot_has_one_owner(self) -> None:
        running = self.scheduler.running
        assert [s.slot for s in running] == list(range(len(running)))
        assert [self.memory[s.slot] for s in running] == [s.id for s in running]
        assert all(s.slot == -1 for s in self.scheduler.waiting)
        everyone = {s.id for s in running} | {s.id for s in self.scheduler.waiting}
        assert everyone == {s.id for s in self.arrived}
        assert len(running) <= SLOTS

    @invariant()
    def first_come_is_first_served(self) -> None:
        assert self.started == sorted(self.started)


TestTraffic = Traffic.TestCase
