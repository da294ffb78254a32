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
    slot: int = -1  # −1 while waiting

    def __post_init__(self) -> None:
        # Its own stream of numbers: an answer does not depend on what else is running.
        self.random = random.Random(f"{self.seed}/{self.id}")

    @property
    def length(self) -> int:
        """Tokens of prompt and answer."""
        return len(self.prompt_ids) + len(self.answer_ids)


@dataclass(frozen=True)
class Output:
    """What a step added to one sequence."""

    id: int
    token_ids: tuple[int, ...]  # stop id excluded
    finish: Finish | None
