"""How many cases tests try: few enough for CI, or all with THOROUGH=1."""

import os
from collections.abc import Sequence
from typing import Any

import pytest

THOROUGH = os.environ.get("THOROUGH") == "1"
EVERY = 8


def cases(usual: int, thorough: int) -> int:
    return thorough if THOROUGH else usual


def few_fast(values: Sequence[Any]) -> list[Any]:
    """Parameters of a test with many cases: all but every eighth are slow."""
    return [
        value if number % EVERY == 0 else pytest.param(value, marks=pytest.mark.slow)
        for number, value in enumerate(values)
    ]
