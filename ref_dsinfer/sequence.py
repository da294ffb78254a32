"""A request on its way through the engine."""

import random
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

Finish = Literal["stop", "length"]


@dataclass(eq=False)
class Sequence:
    """A prompt, the answer so far, and where its latents lie in the KV cache."""

    id: int
    prompt_ids: tuple[int, ...]
    max_new_tokens: int
    stop_ids: frozenset[int] = frozenset()
    temperature: float = 0.0  # 0: greedy
    top_p: float = 1.0
    seed: int = 0
    answer_ids: list[int] = field(default_factory=list)
    # Tokens, from the first on, whose latents are in the KV cache; while it decodes, see
    # decoding.py, that is all but the last, and this is not kept.
    cached: int = 0
    block_table: list[int] = field(default_factory=list)  # blocks of the KV cache, in order
    dp_rank: int = 0  # while it runs: the data-parallel rank that runs it, see parallel.py
    row: int = 0  # while it runs: its number among that rank's sequences
    decodes: bool = False  # whether it is in the scheduler's `decoding`
    drafts: list[int] = field(default_factory=list)  # of the tokens to come

    def __post_init__(self) -> None:
        # A generator of its own: an answer does not depend on what else is running.
        self._random = random.Random(f"{self.seed}/{self.id}")
        self._numbers: list[float] = []  # generated so far

    @property
    def length(self) -> int:
        """Tokens of prompt and answer."""
        return len(self.prompt_ids) + len(self.answer_ids)

    @property
    def limit(self) -> int:
        """Tokens of prompt and answer at most."""
        return len(self.prompt_ids) + self.max_new_tokens

    def ids(self, start: int, stop: int) -> list[int]:
        """Tokens at positions `start` to `stop`, drafts included; fewer where none follow."""
        prompt, length = len(self.prompt_ids), self.length
        if prompt <= start and stop <= length:  # as in every decode
            return self.answer_ids[start - prompt : stop - prompt]
        return [
            *self.prompt_ids[start:stop],
            *self.answer_ids[max(start - prompt, 0) : max(stop - prompt, 0)],
            *self.drafts[max(start - length, 0) : max(stop - length, 0)],
        ]

    def random_number(self, index: int) -> float:
        """The number in [0, 1) that the answer's token `index` is sampled with; always the same."""
        while len(self._numbers) <= index:
            self._numbers.append(self._random.random())
        return self._numbers[index]


class Output(NamedTuple):
    """What a step added to one sequence."""

    id: int
    token_ids: tuple[int, ...]  # stop id excluded
    finish: Finish | None
