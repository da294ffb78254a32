"""Axes: every value has a place in order, and ticks are few, round and inside."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlperf.page.axes import TICKS, Axis

values = st.lists(st.floats(1e-6, 1e12), min_size=1, max_size=20)


@given(values, st.booleans())
def test_an_axis_around_values_has_them_in_order_and_few_ticks_inside(
    shown: list[float], logarithmic: bool
) -> None:
    axis = Axis.around("x", shown, logarithmic)
    shares = [axis.share(value) for value in sorted(shown)]
    assert all(low <= high for low, high in pairwise(shares))
    assert 0 <= shares[0] <= shares[-1] <= 1
    ticks = axis.ticks()
    assert len(ticks) <= 2 * TICKS
    assert all(axis.low * 0.999 <= tick <= axis.high * 1.001 for tick in ticks)
    assert all(low < high for low, high in pairwise(ticks))
    edges = axis.bins(7)
    assert [axis.share(edge) for edge in edges] == pytest.approx([n / 7 for n in range(8)])


@pytest.mark.parametrize("logarithmic", [False, True])
@pytest.mark.parametrize("shown", [[], [0.0], [math.nan, math.inf], [5.0]])
def test_an_axis_of_hardly_any_values_has_a_range(shown: list[float], logarithmic: bool) -> None:
    axis = Axis.around("x", shown, logarithmic)
    assert axis.low < axis.high
    assert 0 <= axis.share(0) <= axis.share(5) <= 1


def test_ticks_are_round() -> None:
    assert Axis.around("x", [348.0]).ticks() == [0, 100, 200, 300, 400]
    assert Axis("x", 15, 2300, True).ticks() == [20, 50, 100, 200, 500, 1000, 2000]
    assert Axis("x", 1, 9e7, True).ticks() == [1, 10, 100, 1e3, 1e4, 1e5, 1e6, 1e7]
