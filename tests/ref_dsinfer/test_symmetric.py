"""How sums in symmetric memory are chosen. `test_parallel.py` makes them, on CPUs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ref_dsinfer.symmetric import BUFFER_BYTES, ONE_SHOT_BYTES, algorithm


@given(st.integers(0, 2 * BUFFER_BYTES), st.integers(2, 16), st.booleans())
def test_a_sum_fits_the_buffer_and_is_worth_it(size: int, ranks: int, multicast: bool) -> None:
    chosen = algorithm(size, ranks, multicast)
    if chosen == "multimem":
        assert multicast
    if chosen == "one_shot":
        assert not multicast
        assert size * (ranks - 1) <= ONE_SHOT_BYTES
    if not 0 < size <= BUFFER_BYTES:
        assert chosen is None


@pytest.mark.parametrize(("rows", "chosen"), [(1, "one_shot"), (16, "one_shot"), (64, None)])
def test_r1_on_eight_gpus(rows: int, chosen: str | None) -> None:
    """A decode step's sums, of so many rows; with NVSwitch all go there."""
    size = rows * 7168 * 4
    assert algorithm(size, 8, multicast=False) == chosen
    assert algorithm(size, 8, multicast=True) == "multimem"
