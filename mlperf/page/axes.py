"""Axes: from values to places in a picture, and the values that are worth a tick."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

from ref_dsinfer.rounding import ceil_div

TICKS = 6  # about how many an axis has


@dataclass(frozen=True)
class Axis:
    """A range of values, with `low` below `high`; a logarithmic one is above 0."""

    label: str  # with the unit
    low: float
    high: float
    logarithmic: bool = False

    @classmethod
    def around(cls, label: str, values: Iterable[float], logarithmic: bool = False) -> Self:
        """An axis with all of `values`, from 0 if it is not logarithmic.

        A logarithmic axis ignores values that are not above 0.
        """
        shown = [one for one in values if math.isfinite(one) and (one > 0 or not logarithmic)]
        if not logarithmic:
            high = max([0.0, *shown])
            step = _step(high or 1.0)
            return cls(label, 0.0, math.ceil((high or 1.0) / step - 1e-9) * step)
        low, high = (min(shown), max(shown)) if shown else (1.0, 1.0)
        return cls(label, low / 1.15, high * 1.15, logarithmic)

    def share(self, value: float) -> float:
        """Where a value lies, from 0 (low) to 1 (high); values outside lie at the end."""
        if self.logarithmic:
            if value <= 0:
                return 0.0
            place = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            place = (value - self.low) / (self.high - self.low)
        return min(max(place, 0.0), 1.0)

    def ticks(self) -> Sequence[float]:
        """Round values of the axis, in order."""
        if not self.logarithmic:
            step = _step(self.high - self.low)
            first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
            return [index * step for index in range(first, last + 1)]
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for digits in ((1, 2, 5), (1, 3), (1,)):
            values = [digit * 10.0**decade for decade in decades for digit in digits]
            inside = [value for value in values if self.low <= value <= self.high]
            if len(inside) <= TICKS + 2:
                break
        return inside[:: ceil_div(len(inside), TICKS + 2)] if inside else inside

    def bins(self, count: int) -> Sequence[float]:
        """The edges of `count` bins of the same width on the axis, in order."""
        if self.logarithmic:
            ratio = self.high / self.low
            return [self.low * ratio ** (index / count) for index in range(count + 1)]
        width = (self.high - self.low) / count
        return [self.low + index * width for index in range(count + 1)]


def _step(span: float) -> float:
    """The distance of ticks on a linear axis: 1, 2 or 5 times a power of ten."""
    rough = span / TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    return next(digit * power for digit in (1, 2, 5, 10) if digit * power >= rough * (1 - 1e-9))
