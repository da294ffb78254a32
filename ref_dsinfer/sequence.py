"""One request on its way through the engine."""

import random
from dataclasses import dataclass, field
from typing import Literal

Finish = Literal["stop", "length"]


@dataclass(eq=False)
class Sequence:
    """A prompt, the answer so far, and where its latents lie."""

    id: int
    prompt_ids: tuple[int, ...]
    max_new_tokens: int
    stop_ids: frozenset[int] = frozenset()
    temperature: float = 0.0  # 0: greedy
    top_p: float = 1.0
    seed: int = 0
    answer_ids: list[int] = field(default_factory=list)
    cached: int = 0  # tokens, from the first on, whose latents are in the cache
    blocks: list[int] = field(default_factory=list)  # of its share's cache, in order
    share: int = 0  # while it runs: which ranks' it is, see parallel.py
    drafts: list[int] = field(default_factory=list)  # guesses of the tokens to come

    def __post_init__(self) -> None:
        # Its own stream of numbers: an answer does not depend on what else is running.
        self._random = random.Random(f"{self.seed}/{self.id}")
        self._numbers: list[float] = []  # drawn so far

    @property
    def length(self) -> int:
        """Tokens of prompt and answer."""
        return len(self.prompt_ids) + len(self.answer_ids)

    @property
    def limit(self) -> int:
        """Tokens of prompt and answer when it is full."""
        return len(self.prompt_ids) + self.max_new_tokens

    def ids(self, start: int, stop: int) -> list[int]:
        """Tokens from `start` up to `stop`, guessed ones among them; fewer where none follow."""
        prompt, length = len(self.prompt_ids), self.length
        if prompt <= start and stop <= length:  # as in every decode
            return self.answer_ids[start - prompt : stop - prompt]
        return [
            *self.prompt_ids[start:stop],
            *self.answer_ids[max(start - prompt, 0) : max(stop - prompt, 0)],
            *self.drafts[max(start - length, 0) : max(stop - length, 0)],
        ]

    def number(self, place: int) -> float:
        """The random number in [0, 1) that draws the answer's token at `place`, whenever asked."""
        while len(self._numbers) <= place:
            self._numbers.append(self._random.random())
        return self._numbers[place]


@dataclass(frozen=True)
class Output:
    """What a step added to one sequence."""

    id: int
    token_ids: tuple[int, ...]  # stop id excluded
    finish: Finish | None
