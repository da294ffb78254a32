"""The scheduler and its blocks against a plain model of both, while requests come and go."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ref_dsinfer.blocks import BlockPool
from ref_dsinfer.rounding import ceil_div
from ref_dsinfer.scheduler import Scheduler
from ref_dsinfer.sequence import Sequence

LONGEST = 60  # tokens


class Traffic(RuleBasedStateMachine):
    """`memory[rank, block, place]` stands for the caches: which token of whose lies there."""

    @initialize(
        size=st.integers(1, 9),
        more=st.integers(0, 20),
        running=st.integers(1, 5),
        tokens=st.integers(1, 80),
        ranks=st.integers(1, 3),
        drafts=st.sampled_from([0, 0, 1, 3]),
        in_columns=st.booleans(),
    )
    def start(
        self,
        size: int,
        more: int,
        running: int,
        tokens: int,
        ranks: int,
        drafts: int,
        in_columns: bool,
    ) -> None:
        self.pools = [BlockPool(ceil_div(LONGEST, size) + more, size) for _ in range(ranks)]
        self.scheduler = Scheduler(self.pools, running, tokens, drafts)
        self.drafts, self.in_columns = drafts, in_columns and not drafts
        self.memory: dict[tuple[int, int, int], tuple[int, int]] = {}
        self.tables: dict[tuple[int, int], list[int]] = {}  # as a runner has them, by rank and row
        self.arrived: list[Sequence] = []

    @rule(length=st.integers(1, LONGEST - 1))
    def add(self, length: int) -> None:
        sequence = Sequence(len(self.memory) + id(object()), (0,) * length, LONGEST - length)
        self.arrived.append(sequence)
        self.scheduler.add(sequence)

    @rule(right=st.integers(0, 3))
    def step(self, right: int) -> None:
        """One step in which at most `right` drafts are accepted."""
        if not self.scheduler.busy:
            return
        scheduled = self.scheduler.schedule()
        decoding = self.scheduler.decoding
        assert scheduled or decoding.sequences
        for number, count in enumerate(decoding.counts):
            rank = [one for one in scheduled if one.sequence.dp_rank == number]
            assert count + sum(one.count for one in rank) <= self.scheduler.step_tokens
            self.decode(number)
        decoded = decoding.sequences[:]
        for number, finish in decoding.append([0] * len(decoded)).items():
            assert finish == "length"
            self.arrived.remove(decoded[number])
            self.scheduler.remove(decoded[number])
        order = [(one.sequence.dp_rank, not one.is_decode) for one in scheduled]
        assert order == sorted(order)
        assert len({one.sequence for one in scheduled}) == len(scheduled)
        for one in scheduled:
            assert one.count > 0
            for position in range(one.start, one.stop):
                self.memory[self.place(one.sequence, position)] = one.sequence.id, position
        for one in scheduled:
            for position in range(one.stop):
                place = self.place(one.sequence, position)
                assert self.memory[place] == (one.sequence.id, position)
            sequence = one.sequence
            assert one.samples == (one.stop >= sequence.length) * (1 + len(sequence.drafts))
            if one.samples:
                held = min(right, len(sequence.drafts))
                sequence.answer_ids += [0] * (1 + held)
                sequence.cached += held
                sequence.drafts = [0] * min(self.drafts, LONGEST - sequence.length - 1)
                # the entries that drafts are made from, the first from the last token but one
                entries = sequence.length - 2 + len(sequence.drafts)
                room = len(sequence.block_table) * self.pools[0].block_size
                assert sequence.length == LONGEST or entries <= room
                assert sequence.length <= LONGEST
                if sequence.length == LONGEST:
                    self.arrived.remove(sequence)
                    self.scheduler.remove(sequence)
                elif self.in_columns:
                    decoding.join(sequence)

    def decode(self, rank: int) -> None:
        """The last tokens of a rank's sequences in columns."""
        part = self.scheduler.decoding.part(rank)
        columns = zip(part.sequences, part.positions.tolist(), part.slots.tolist(), strict=True)
        for sequence, position, slot in columns:
            assert position == sequence.length - 1
            _, block, offset = place = self.place(sequence, position)
            assert slot == block * self.pools[0].block_size + offset
            self.memory[place] = sequence.id, position
        for sequence in part.sequences:
            for position in range(sequence.length):
                assert self.memory[self.place(sequence, position)] == (sequence.id, position)
        tables = self.scheduler.decoding.changed_tables(rank)
        rows = dict(zip(part.rows.tolist(), part.sequences, strict=True))
        assert len(rows) == len(part.sequences)
        self.tables |= {(rank, row): list(table) for row, table in tables.items()}
        for row, sequence in rows.items():
            assert self.tables[rank, row] == sequence.block_table

    def place(self, sequence: Sequence, position: int) -> tuple[int, int, int]:
        block, place = divmod(position, self.pools[0].block_size)
        return sequence.dp_rank, sequence.block_table[block], place

    @rule(choice=st.integers(0, 99))
    def remove(self, choice: int) -> None:
        """End or abort one sequence, at any position."""
        if self.arrived:
            self.scheduler.remove(self.arrived.pop(choice % len(self.arrived)))

    @rule()
    def drain(self) -> None:
        """Step until all sequences have ended, however often they are preempted."""
        for _ in range(len(self.arrived) * LONGEST * 2):
            self.step(1)
        assert not self.arrived
        assert not self.scheduler.busy
        assert all(pool.free == pool.blocks for pool in self.pools)

    @invariant()
    def every_block_has_one_owner_or_is_free(self) -> None:
        running, waiting = self.scheduler.running, self.scheduler.waiting
        for rank, pool in enumerate(self.pools):
            held = [block for one in running if one.dp_rank == rank for block in one.block_table]
            assert len(held) == len(set(held))
            assert len(held) + pool.free == pool.blocks
            assert set(held).isdisjoint(pool._free)
            most = ceil_div(self.scheduler.max_running, len(self.pools))
            assert sum(one.dp_rank == rank for one in running) <= most
        assert not any(
            one.block_table or one.cached or one.drafts or one.decodes for one in waiting
        )
        assert {one for one in running if one.decodes} == set(self.scheduler.decoding.sequences)
        assert {*running, *waiting} == set(self.arrived)
        assert len(running) <= self.scheduler.max_running


TestTraffic = Traffic.TestCase


def test_those_who_came_first_start_first_and_start_over_last() -> None:
    scheduler = Scheduler([BlockPool(4, 4)], 3)
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


def test_a_sequence_goes_where_fewest_run_and_then_where_most_blocks_are_free() -> None:
    scheduler = Scheduler([BlockPool(9, 4), BlockPool(9, 4)], 6)
    sequences = [Sequence(i, (0,) * length, 20) for i, length in enumerate((4, 12, 4, 4, 4))]
    for sequence in sequences[:4]:
        scheduler.add(sequence)
    scheduled = scheduler.schedule()
    assert [one.sequence.id for one in scheduled] == [0, 2, 1, 3]
    assert [one.sequence.dp_rank for one in scheduled] == [0, 0, 1, 1]
    for done in (1, 3):
        scheduler.remove(sequences[done])
    scheduler.add(sequences[4])
    assert [one.sequence.id for one in scheduler.schedule() if one.sequence.dp_rank == 1] == [4]


def test_a_share_without_blocks_is_passed_over_and_preempts_its_own_only() -> None:
    scheduler = Scheduler([BlockPool(4, 4), BlockPool(4, 4)], 4)
    sequences = [Sequence(i, (0,) * length, 20) for i, length in enumerate((13, 4, 4))]
    for sequence in sequences:
        scheduler.add(sequence)
    first, second, third = sequences
    scheduler.schedule()
    assert [one.dp_rank for one in sequences] == [0, 1, 1]
    second.answer_ids += [0] * 9  # as if nine steps had gone by: its fourth block is the third's
    assert [one.sequence for one in scheduler.schedule()] == [first, second]
    assert list(scheduler.waiting) == [third]
