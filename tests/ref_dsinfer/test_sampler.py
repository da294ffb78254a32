from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ref_dsinfer.parallel import RankInfo, Ranks
from ref_dsinfer.sampler import Scores, greedy, sample
from ref_dsinfer.sequence import Sequence

ALONE = Ranks(RankInfo(), torch.device("cpu"))
LOGITS = torch.tensor([0.5, 0.1, 0.3, 0.1]).log()


def sequence(number: int = 0, seed: int = 0, **sampling: Any) -> Sequence:
    return Sequence(number, (1,), 1, seed=seed, **sampling)


def scores(logits_NV: torch.Tensor) -> Scores:
    return Scores(logits_NV, greedy(logits_NV, ALONE), np.arange(len(logits_NV)))


def test_greedy_selects_the_lowest_id_of_equal_logits() -> None:
    logits = torch.full((2, 5000), 1.0)
    logits[0, 3000:] = 2.0
    assert sample(scores(logits), [(sequence(), 0), (sequence(), 0)], ALONE) == [3000, 0]


class Parts(Ranks):
    """A rank that knows all ranks' parts of the logits."""

    def __init__(self, rank: int, parts: tuple[torch.Tensor, ...]) -> None:
        super().__init__(RankInfo(), torch.device("cpu"))
        self.rank, self.world_size, self.parts = rank, len(parts), parts

    def gather_columns(self, part_NV: torch.Tensor) -> torch.Tensor:
        best, ids = zip(*(part.max(dim=-1) for part in self.parts), strict=True)
        pairs = [
            torch.stack([value.double(), index.double() + rank * self.parts[0].shape[1]], dim=-1)
            for rank, (value, index) in enumerate(zip(best, ids, strict=True))
        ]
        torch.testing.assert_close(pairs[self.rank], part_NV, rtol=0, atol=0)
        return torch.cat(pairs, dim=1)


@given(st.lists(st.lists(st.integers(0, 3), min_size=12, max_size=12), min_size=1, max_size=4))
def test_greedy_over_parts_of_the_vocabulary_is_greedy_over_the_whole(
    rows: list[list[int]],
) -> None:
    logits = torch.tensor(rows).float()
    parts = logits.split(4, dim=1)
    for rank in range(3):
        assert greedy(parts[rank], Parts(rank, parts)).tolist() == logits.argmax(dim=-1).tolist()


@pytest.mark.parametrize(
    ("temperature", "top_p", "expected"),
    [
        (1.0, 1.0, [0.5, 0.1, 0.3, 0.1]),
        (0.5, 1.0, [25 / 36, 1 / 36, 9 / 36, 1 / 36]),
        (1.0, 0.8, [0.625, 0, 0.375, 0]),
        (1.0, 0.81, [5 / 9, 1 / 9, 3 / 9, 0]),
        (1.0, 0.01, [1, 0, 0, 0]),
    ],
)
def test_draws_follow_temperature_and_top_p(
    temperature: float, top_p: float, expected: list[float]
) -> None:
    count = 4000
    places = [(sequence(n, temperature=temperature, top_p=top_p), 0) for n in range(count)]
    drawn = Counter(sample(scores(LOGITS.expand(count, -1)), places, ALONE))
    for token, share in enumerate(expected):
        assert drawn[token] / count == pytest.approx(share, abs=0.03 if share else 0)


def test_a_draw_depends_on_seed_and_id_and_on_nothing_else_in_the_batch() -> None:
    def draws(number: int, seed: int, others: int) -> list[int]:
        one = sequence(number, seed, temperature=1.0)
        rest = [sequence(900 + n, temperature=float(n % 2)) for n in range(others)]
        batch = LOGITS.expand(others + 1, -1)
        return [
            sample(scores(batch), [*((s, 0) for s in rest), (one, n)], ALONE)[-1] for n in range(40)
        ]

    assert draws(7, 0, others=0) == draws(7, 0, others=5)
    assert draws(7, 0, others=0) != draws(8, 0, others=0)
    assert draws(7, 0, others=0) != draws(7, 1, others=0)


def test_a_position_s_sample_does_not_depend_on_when_it_is_drawn() -> None:
    one, other = (sequence(7, temperature=1.0) for _ in range(2))
    together = sample(scores(LOGITS.expand(40, -1)), [(one, place) for place in range(40)], ALONE)
    again = [
        sample(scores(LOGITS[None]), [(other, place)], ALONE)[0] for place in (*range(30, 40), 3)
    ]
    assert again == [*together[30:], together[3]]
    assert len(set(together)) > 2
