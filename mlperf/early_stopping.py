"""LoadGen's early stopping: how many late queries a run may have, and how likely it is VALID.

A run of the Server scenario is VALID only if its late queries are so few that, with a confidence of
99 %, less than 1 % of all queries are late; TTFT and TPOT are each judged. So the p99 of a run must
be within the limit, and the fewer queries a run has, the fewer than 1 % may be late. Source:
loadgen/early_stopping.cc of mlcommons/inference.
"""

from collections.abc import Callable
from math import exp, inf, lgamma, log

LATE = 0.01  # share of queries above which the 99th percentile misses the limit
DOUBT = 0.01  # 1 - LoadGen's confidence
MOST_LATE = 10_000  # a run that is allowed more has 10^6 queries


def late_allowed(queries: int) -> int | None:
    """The most late queries with which a run of so many is VALID; None if none are too many."""
    total = 0.0
    for late in range(queries + 1):
        total += exp(
            _log_choose(queries, late) + late * log(LATE) + (queries - late) * log(1 - LATE)
        )
        if total >= DOUBT:
            return late - 1 if late else None
    return queries


def queries_needed(share: float) -> float:
    """The fewest queries of a VALID run if this share of them is late; infinite if none is."""

    def suffices(late: int) -> bool:
        return share * fewest_queries(late) <= late

    late = _first(suffices, MOST_LATE)
    return inf if late is None else fewest_queries(late)


def fewest_queries(late: int) -> int:
    """The fewest queries of a VALID run with so many late ones."""
    fewest = _first(lambda queries: _allows(queries, late), 200 * MOST_LATE)
    assert fewest is not None
    return fewest


def likelihood(late: int, queries: int, run_queries: int) -> float:
    """The probability that not too many of a run's queries are late.

    `late` of `queries`: those of a shorter test at the same rate. Every query is assumed to be
    late with the same probability, of which nothing else is known (Jeffreys' prior).
    """
    allowed = late_allowed(run_queries)
    if allowed is None:
        return 0.0
    a, b = late + 0.5, queries - late + 0.5
    return sum(
        exp(
            _log_choose(run_queries, count)
            + _log_beta(a + count, b + run_queries - count)
            - _log_beta(a, b)
        )
        for count in range(allowed + 1)
    )


def _allows(queries: int, late: int) -> bool:
    allowed = late_allowed(queries)
    return allowed is not None and allowed >= late


def _first(holds: Callable[[int], bool], most: int) -> int | None:
    """The smallest number, up to about `most`, from which on a condition holds; None if none."""
    high = 1
    if holds(0):
        return 0
    while not holds(high):
        if high >= most:
            return None
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _log_choose(total: int, count: int) -> float:
    return lgamma(total + 1) - lgamma(count + 1) - lgamma(total - count + 1)


def _log_beta(a: float, b: float) -> float:
    return lgamma(a) + lgamma(b) - lgamma(a + b)
