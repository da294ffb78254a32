"""Requests come and go; the scheduler and its blocks are held against a plain model of both."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ref_dsinfer.blocks import BlockPool
from ref_dsinfer.scheduler import Scheduler
from ref_dsinfer.sequence import Sequence

LONGEST = 60  # tokens


class Traffic(RuleBasedStateMachine):
    """`memory[block, place]` stands for the cache: which token of whose lies there."""

    @initialize(
        size=st.integers(1, 9),
        more=st.integers(0, 20),
        running=st.integers(1, 5),
        tokens=st.integers(1, 80),
        drafts=st.sampled_from([0, 0, 1, 3]),
    )
    def start(self, size: int, more: int, running: int, tokens: int, drafts: int) -> None:
        self.pool = BlockPool(-(-LONGEST // size) + more, size)
        self.scheduler = Scheduler(self.pool, running, tokens, drafts)
        self.drafts = drafts
        self.memory: dict[tuple[int, int], tuple[int, int]] = {}
        self.arrived: list[Sequence] = []

    @rule(length=st.integers(1, LONGEST - 1))
    def add(self, length: int) -> None:
        sequence = Sequence(len(self.memory) + id(object()), (0,) * length, LONGEST - length)
        self.arrived.append(sequence)
        self.scheduler.add(sequence)

    @rule(right=st.integers(0, 3))
    def step(self, right: int) -> None:
        """At most so many drafts are right."""
        if not self.scheduler.busy:
            return
        work = self.scheduler.schedule()
        assert work
        assert sum(one.count for one in work) <= self.scheduler.step_tokens
        assert [one.decodes for one in work] == sorted((one.decodes for one in work), reverse=True)
        assert len({one.sequence for one in work}) == len(work)
        size = self.pool.block_size
        for one in work:
            assert one.count > 0
            for position in range(one.start, one.stop):
                place = one.sequence.blocks[position // size], position % size
                self.memory[place] = one.sequence.id, position
        for one in work:
            for position in range(one.stop):
                place = one.sequence.blocks[position // size], position % size
                assert self.memory[place] == (one.sequence.id, position)
            sequence = one.sequence
            assert one.draws == (one.stop >= sequence.length) * (1 + len(sequence.drafts))
            if one.draws:
                held = min(right, len(sequence.drafts))
                sequence.answer_ids += [0] * (1 + held)
                sequence.cached += held
                sequence.drafts = [0] * min(self.drafts, LONGEST - sequence.length - 1)
                # the entries that drafts are made from, the first from the last token but one
                entries = sequence.length - 2 + len(sequence.drafts)
                assert sequence.length == LONGEST or entries <= len(sequence.blocks) * size
                assert sequence.length <= LONGEST
                if sequence.length == LONGEST:
                    self.arrived.remove(sequence)
                    self.scheduler.remove(sequence)

    @rule(choice=st.integers(0, 99))
    def remove(self, choice: int) -> None:
        """One ends, or is aborted, at any place."""
        if self.arrived:
            self.scheduler.remove(self.arrived.pop(choice % len(self.arrived)))

    @rule()
    def drain(self) -> None:
        """All come to their end, however often they are preempted."""
        for _ in range(len(self.arrived) * LONGEST * 2):
            self.step(1)
        assert not self.arrived
        assert not self.scheduler.busy
        assert self.pool.free == self.pool.blocks

    @invariant()
    def every_block_has_one_owner_or_is_free(self) -> None:
        running, waiting = self.scheduler.running, self.scheduler.waiting
        held = [block for sequence in running for block in sequence.blocks]
        assert len(held) == len(set(held))
        assert len(held) + self.pool.free == self.pool.blocks
        assert set(held).isdisjoint(self.pool._free)
        assert not any(s.blocks or s.cached or s.drafts for s in waiting)
        assert {*running, *waiting} == set(self.arrived)
        assert len(running) <= self.scheduler.max_running


TestTraffic = Traffic.TestCase


def test_those_who_came_first_start_first_and_start_over_last() -> None:
    scheduler = Scheduler(BlockPool(4, 4), 3)
    first, second, third = sequences = [Sequence(i, (0,) * 4, 20) for i in range(3)]
    for sequence in sequences:
        scheduler.add(sequence)
    assert [one.sequence for one in scheduler.schedule()] == [first, second]
    for sequence in (first, second):
        sequence.answer_ids.append(0)
    assert [one.sequence for one in scheduler.schedule()] == [first, second]
    for sequence in (first, second):
        sequence.answer_ids += [0] * 4  # as if four steps had gone by
    assert [one.sequence for one in scheduler.schedule()] == [first]
    assert scheduler.preempted == 1
    assert list(scheduler.waiting) == [second, third]
