"""The sequences that decode, in columns: each runs its last token in every step, until it ends.

What a step needs of them lies in arrays, so that it takes a few operations however many they are.
Sequences with drafts to verify are not among them.
"""

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ref_dsinfer.sequence import Finish, Sequence

Column = NDArray[np.int64]
COLUMNS = 6


@dataclass(frozen=True)
class Decoded:
    """One data-parallel rank's sequences in a step, and its columns for their last tokens."""

    sequences: list[Sequence]
    tokens: Column
    positions: Column
    slots: Column  # in the KV cache
    rows: Column  # the sequences' own


class Decoding:
    """The sequences of all data-parallel ranks, one rank after another."""

    def __init__(self, most: int, ranks: int, block_size: int) -> None:
        """At most `most` sequences."""
        self._block_size = block_size
        self._values = np.zeros((COLUMNS, most), np.int64)
        self._stop_ids: set[int] = set()  # of all that have ever been here
        self.sequences: list[Sequence] = []  # of each rank the oldest first
        self._answers: list[list[int]] = []  # their `answer_ids`
        self.counts = [0] * ranks  # sequences of each rank
        self.drawn = 0  # sequences that are not greedy
        # By rank, those whose block tables have changed since `changed_tables` was called.
        self._changed: list[set[Sequence]] = [set() for _ in range(ranks)]
        self._update()

    def __len__(self) -> int:
        return len(self.sequences)

    def join(self, sequence: Sequence) -> None:
        """Add a sequence that has sampled its first token since it was admitted."""
        place = sum(self.counts[: sequence.dp_rank + 1])
        self._values[:, place + 1 : len(self) + 1] = self._values[:, place : len(self)]
        self.sequences.insert(place, sequence)
        self._answers.insert(place, sequence.answer_ids)
        self.counts[sequence.dp_rank] += 1
        self.drawn += sequence.temperature > 0
        self._stop_ids |= sequence.stop_ids
        sequence.decodes = True
        self._update()
        self.tokens[place] = sequence.answer_ids[-1]
        self.lengths[place], self.limits[place] = sequence.length, sequence.limit
        self.rows[place] = sequence.row
        self._write(place)

    def leave(self, sequence: Sequence) -> None:
        """Take a sequence out."""
        place = self.sequences.index(sequence)
        self._values[:, place : len(self) - 1] = self._values[:, place + 1 : len(self)]
        del self.sequences[place], self._answers[place]
        self.counts[sequence.dp_rank] -= 1
        self.drawn -= sequence.temperature > 0
        self._changed[sequence.dp_rank].discard(sequence)
        sequence.decodes = False
        self._update()

    def short(self) -> list[tuple[int, Sequence]]:
        """Those that need a further block for their last token, and their places, the oldest of a
        rank first."""
        places: list[int] = (self.lengths > self.rooms).nonzero()[0].tolist()
        return [(place, self.sequences[place]) for place in places]

    def grow(self, place: int, sequence: Sequence) -> None:
        """Take note of a sequence's further block. Since it had that place, others may have
        left."""
        if self.sequences[place : place + 1] != [sequence]:
            place = self.sequences.index(sequence)
        self._write(place)

    def part(self, rank: int) -> Decoded:
        """What a data-parallel rank runs."""
        stop = sum(self.counts[: rank + 1])
        part = slice(stop - self.counts[rank], stop)
        positions = self.lengths[part] - 1
        slots = self.lasts[part] + positions % self._block_size
        return Decoded(self.sequences[part], self.tokens[part], positions, slots, self.rows[part])

    def changed_tables(self, rank: int) -> dict[int, list[int]]:
        """A data-parallel rank's block tables that have changed since the last call, by the
        sequences' rows."""
        tables = {sequence.row: sequence.block_table for sequence in self._changed[rank]}
        self._changed[rank].clear()
        return tables

    def append(self, tokens: list[int]) -> dict[int, Finish]:
        """Append a sampled token to each answer, unless it is a stop id; returns the places of
        sequences that have ended, and how."""
        ended: dict[int, Finish] = {}
        if not self._stop_ids.isdisjoint(tokens):
            for place, (sequence, token) in enumerate(zip(self.sequences, tokens, strict=True)):
                if token in sequence.stop_ids:
                    ended[place] = "stop"
        self.tokens[:] = tokens
        self.lengths += 1
        deque(map(list.append, self._answers, tokens), maxlen=0)  # a loop takes longer
        for place in ended:
            self.sequences[place].answer_ids.pop()
        for place in (self.lengths == self.limits).nonzero()[0].tolist():
            ended.setdefault(place, "length")
        return ended

    def _update(self) -> None:
        """The columns as far as they are used."""
        columns = self._values[:, : len(self)]
        self.tokens, self.lengths, self.limits, self.rooms, self.lasts, self.rows = columns

    def _write(self, place: int) -> None:
        """Write what depends on a block table: the tokens that have room, and the last block's
        first slot."""
        sequence = self.sequences[place]
        self.rooms[place] = len(sequence.block_table) * self._block_size
        self.lasts[place] = sequence.block_table[-1] * self._block_size
        self._changed[sequence.dp_rank].add(sequence)
