"""The rounds of MLPerf Inference that a submission tree can be built and checked for.

What is the same in all of them (rows, limits, durations) is in benchmark.py and mlperf.conf.
"""

from dataclasses import dataclass

from benchmark import ROUND
from errors import UsageError

REQUIRED_SCENARIO = "Offline"
ONE_OF = ("Server", "Interactive")  # beside the required one, in the closed division


@dataclass(frozen=True)
class Round:
    """What a round has of its own."""

    name: str
    seeds: dict[str, int]  # by their names in mlperf.conf
    endpoints: bool  # results of the endpoints client are allowed
    power_description: bool  # systems/<system>_power.yaml is read


def _seeds(qsl: int, sample_index: int, schedule: int) -> dict[str, int]:
    return {
        "qsl_rng_seed": qsl,
        "sample_index_rng_seed": sample_index,
        "schedule_rng_seed": schedule,
    }


ROUNDS = {
    one.name: one
    for one in (
        Round(
            "v6.0",
            _seeds(2465351861681999779, 14276810075590677512, 3936089224930324775),
            endpoints=False,
            power_description=False,
        ),
        Round(
            "v6.1",
            _seeds(2085463073848966840, 2747215439041700203, 16159082839903944936),
            endpoints=True,
            power_description=True,
        ),
    )
}


def lookup(name: str = ROUND) -> Round:
    """Raises: UsageError for an unknown round, naming the known ones."""
    if name not in ROUNDS:
        raise UsageError(f"unknown round {name!r} (known: {', '.join(ROUNDS)})")
    return ROUNDS[name]
