"""The bootstrap: what it can't tell, what it must tell, and how often it is wrong."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlperf.compare import noise
from mlperf.compare.noise import Interval, of_pairs, of_series


@pytest.fixture(autouse=True, scope="module")
def fewer_resamples() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(noise, "RESAMPLES", 200)
        yield


lengths = st.lists(st.integers(1, 20_000), min_size=noise.FEWEST, max_size=40)


@settings(max_examples=10)
@given(lengths, st.sampled_from([0.5, 1.0, 1.25]))
def test_pairs_that_differ_by_a_factor_have_no_noise(values: list[int], factor: float) -> None:
    first = np.array(values, float)
    interval = of_pairs(first, factor * first)
    assert interval
    assert (interval.low, interval.high) == pytest.approx((factor, factor))
    assert of_pairs(first, first) == Interval(1, 1)  # the same answers are within noise
    assert Interval(1, 1).beyond_noise is False


@settings(max_examples=10)
@given(lengths, lengths)
def test_the_interval_of_a_swap_is_the_inverse(one: list[int], two: list[int]) -> None:
    count = min(len(one), len(two))
    first, second = np.array(one[:count], float), np.array(two[:count], float)
    ours, theirs = of_pairs(first, second), of_pairs(second, first)
    assert ours
    assert theirs
    assert (ours.low, ours.high) == pytest.approx((1 / theirs.high, 1 / theirs.low))
    assert ours.beyond_noise == theirs.beyond_noise


def seconds(random: np.random.Generator, count: int, mean: float) -> np.ndarray:
    """Tokens of each second, of which each remembers the one before."""
    noise_ = random.normal(size=count)
    for at in range(1, count):
        noise_[at] += 0.6 * noise_[at - 1]
    return mean * (1 + 0.1 * noise_)


def test_runs_alike_are_rarely_told_apart_and_others_always() -> None:
    random = np.random.default_rng(1)
    false_alarms = misses = 0
    for _ in range(10):
        first, again = (seconds(random, 300, 1000) for _ in range(2))
        slower = seconds(random, 300, 900)
        for second, differs in ((again, False), (slower, True)):
            interval = of_series(first, second, noise.mean)
            assert interval
            misses += differs and not interval.beyond_noise
            false_alarms += interval.beyond_noise and not differs
    assert false_alarms <= 3  # one in twenty is expected
    assert misses == 0


def test_neighbours_are_drawn_together() -> None:
    """Seconds that remember the ones before make for less certainty than their number says."""
    random = np.random.default_rng(2)
    first, second = (seconds(random, 400, 1000) for _ in range(2))
    in_order = of_series(first, second, noise.mean)
    shuffled = of_series(random.permutation(first), random.permutation(second), noise.mean)
    assert in_order
    assert shuffled
    assert in_order.high - in_order.low > 1.3 * (shuffled.high - shuffled.low)


def test_too_few_values_tell_nothing() -> None:
    few, many = np.ones(noise.FEWEST - 1), np.ones(noise.FEWEST)
    assert of_pairs(few, few) is None
    assert of_series(few, many, noise.mean) is None
    assert of_series(many, many, noise.mean) == Interval(1, 1)
    assert noise.fewest(99) == 500
    assert noise.fewest(50) == noise.FEWEST


def test_a_run_that_stood_still_has_an_interval() -> None:
    nothing, something = np.zeros(20), np.ones(20)
    assert of_series(nothing, nothing, noise.mean) == Interval(1, 1)
    interval = of_series(nothing, something, noise.mean)
    assert interval
    assert interval.beyond_noise
