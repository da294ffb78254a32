"""Whether two figures differ by more than a run varies within itself.

A run is one draw: measured again, it would give another figure. How far off that may be is
estimated by the bootstrap: the figure is computed again from many resamples of what the run is made
of, its samples, answers or seconds. Answers and seconds depend on their neighbours (a queue that is
long stays so for a while), so they are drawn in blocks. What changes between runs only, such as the
machine's temperature, is in no resample: a second run with the same settings shows it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ref_dsinfer.rounding import ceil_div

if TYPE_CHECKING:
    import numpy as np

RESAMPLES = 1000
LEVEL = 0.95  # of resamples whose ratio is within an interval
ALPHA = 1 - LEVEL
FEWEST = 10  # values to tell anything from
SEED = 0  # the same runs give the same interval

Statistic = Callable[["np.ndarray"], float]


@dataclass(frozen=True)
class Interval:
    """The ratio of two figures in 95 % of the resamples."""

    low: float
    high: float

    @property
    def beyond_noise(self) -> bool:
        """Whether the two figures differ by more than chance explains."""
        return not self.low <= 1 <= self.high


def percentile(percent: float) -> Statistic:
    """The statistic of a percentile."""

    def statistic(values: "np.ndarray") -> float:
        import numpy as np

        return float(np.percentile(values, percent))

    return statistic


def fewest(percent: float) -> int:
    """How many values a percentile needs for five of them to be above it."""
    return max(FEWEST, math.ceil(5 / (1 - percent / 100)))


def mean(values: "np.ndarray") -> float:
    """The statistic of a rate (of a count for each second) or of a length."""
    return float(values.mean())


def of_pairs(first: "np.ndarray", second: "np.ndarray") -> Interval | None:
    """The ratio of the means of the second's and the first's values, of the same samples each.

    Returns None if there are too few pairs to tell.
    """
    import numpy as np

    count = len(first)
    if count < FEWEST:
        return None
    random = np.random.default_rng(SEED)
    ratios = []
    for _ in range(RESAMPLES):
        drawn = random.integers(count, size=count)
        ratios.append(_ratio(mean(first[drawn]), mean(second[drawn])))
    return _interval(ratios)


def of_series(
    first: "np.ndarray", second: "np.ndarray", statistic: Statistic, least: int = FEWEST
) -> Interval | None:
    """The ratio of a statistic of two runs' values, each in the order of time.

    Returns None if a run has fewer than `least` values.
    """
    import numpy as np

    if min(len(first), len(second)) < least:
        return None
    random = np.random.default_rng(SEED)
    return _interval(
        [
            _ratio(statistic(_blocks(first, random)), statistic(_blocks(second, random)))
            for _ in range(RESAMPLES)
        ]
    )


def _blocks(values: "np.ndarray", random: "np.random.Generator") -> "np.ndarray":
    """As many values, drawn in blocks of neighbours; the last value's neighbour is the first."""
    import numpy as np

    count = len(values)
    length = math.ceil(math.sqrt(count))
    starts = random.integers(count, size=ceil_div(count, length))
    return values[((starts[:, None] + np.arange(length)) % count).ravel()[:count]]


def _ratio(first: float, second: float) -> float:
    if first:
        return second / first
    return math.inf if second else 1.0


def _interval(ratios: list[float]) -> Interval:
    import numpy as np

    # of values that exist: between two of which one is infinite there is none
    low, high = np.quantile(ratios, [ALPHA / 2, 1 - ALPHA / 2], method="nearest")
    return Interval(float(low), float(high))
