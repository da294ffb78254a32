"""Early stopping, compared with LoadGen's own C++ code."""

import random

import pytest

from mlperf.early_stopping import fewest_queries, late_allowed, likelihood, queries_needed


@pytest.mark.parametrize(  # by loadgen/early_stopping.cc
    ("late", "queries"),
    [(0, 459), (1, 662), (10, 2010), (30, 4533), (100, 12571), (400, 44881)],
)
def test_the_numbers_are_loadgen_s(late: int, queries: int) -> None:
    assert fewest_queries(late) == queries
    assert late_allowed(queries) == late
    assert late_allowed(queries - 1) == (late - 1 if late else None)


def test_the_more_are_late_the_more_queries_are_needed() -> None:
    needed = [queries_needed(share) for share in (0, 0.001, 0.005, 0.008, 0.009, 0.01)]
    assert needed[0] == 459
    assert needed == sorted(needed)
    assert needed[-2] < needed[-1] == float("inf")


@pytest.mark.parametrize(("late", "queries"), [(0, 300), (2, 300), (6, 1000), (12, 1000)])
def test_the_likelihood_is_that_of_a_simulation(late: int, queries: int) -> None:
    rng = random.Random(late)
    run_queries = 4388
    allowed = late_allowed(run_queries)
    assert allowed == 28

    def is_valid() -> bool:
        share = rng.betavariate(late + 0.5, queries - late + 0.5)
        mean = run_queries * share
        return rng.gauss(mean, (mean * (1 - share)) ** 0.5) < allowed + 0.5

    simulated = sum(is_valid() for _ in range(20_000)) / 20_000
    assert likelihood(late, queries, run_queries) == pytest.approx(simulated, abs=0.02)


def test_a_run_of_too_few_queries_is_never_valid() -> None:
    assert likelihood(0, 10_000, 458) == 0
