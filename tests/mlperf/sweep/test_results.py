"""The Pareto front, and the best legal point."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlperf.result_folder import ResultFolder
from mlperf.sweep.plan import Engine, Point
from mlperf.sweep.results import Result, best, front, limit, on_front

numbers = st.integers(0, 6).map(float)  # few enough for equal ones


def beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one[0] >= other[0] and one[1] <= other[1] and one != other


@given(st.lists(st.tuples(numbers, numbers), max_size=12))
def test_the_front_is_what_no_point_beats(points: list[tuple[float, float]]) -> None:
    expected = {
        place
        for place, point in enumerate(points)
        if not any(beats(other, point) for other in points)
    }
    assert front(points) == expected


def test_limits_are_the_benchmark_s() -> None:
    assert [limit("server", name) for name in ("ttft_p99_ms", "tpot_p99_ms")] == [2000, 80]
    assert [limit("interactive", name) for name in ("ttft_p99_ms", "tpot_p99_ms")] == [1500, 15]
    assert limit("offline", "ttft_p99_ms") is None


def result(mode: str, tokens: float, **changes: Any) -> Result:
    """A point with a record as a run leaves it."""
    engine = Engine("echo", "echo", Path("python"), 0, (), {})
    made = Result(Point(engine, {"n": tokens}, (), mode, Path(f"/{mode}{tokens}")))
    latencies = {} if mode == "offline" else {"ttft_p99_ms": 1500.0, "tpot_p99_ms": 15.0}
    figures = {"tokens_per_second": tokens, **latencies, **changes.pop("figures", {})}
    record = {
        "figures": figures,
        "loadgen_validity": "INVALID",
        "known_before_the_run": ["short"],
        "not_submittable_because": ["short", "INVALID: too few queries"],
        **changes,
    }
    folder = ResultFolder(made.point.folder, record, {"state": "done"}, None, None, None, None)
    made.__dict__["folder"] = folder  # instead of one on the disk
    return made


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "within"),
        ({"loadgen_validity": "VALID"}, "VALID"),
        ({"figures": {"ttft_p99_ms": 1500.1}}, "over"),
        ({"figures": {"tpot_p99_ms": 15.01}, "loadgen_validity": "VALID"}, "over"),
        ({"figures": {"tpot_p99_ms": None}}, "over"),
        ({"not_submittable_because": ["prefix caching: 9 tokens"]}, "broken"),
    ],
)
def test_a_point_is_judged_by_its_scenario(changes: dict[str, Any], verdict: str) -> None:
    assert result("interactive", 1, **changes).verdict == verdict


def test_the_best_is_the_fastest_legal_one_of_each_scenario() -> None:
    over = {"figures": {"tpot_p99_ms": 81.0}}
    points = [
        result("server", 30, **over),
        result("server", 20),
        result("server", 10),
        result("offline", 50),
        result("interactive", 9, **over),
    ]
    chosen = {mode: one.point.values["n"] for mode, one in best(points).items()}
    assert chosen == {"offline": 50, "server": 20}
    valid = result("server", 10, loadgen_validity="VALID")
    assert best([*points, valid])["server"] is valid  # rather than one that may turn out INVALID


def test_only_points_with_a_latency_are_on_its_front() -> None:
    slow = {"figures": {"ttft_p99_ms": 1600.0}}
    points = [result("offline", 50), result("server", 20), result("server", 10, **slow)]
    assert on_front(points, "ttft_p99_ms") == {1}
    assert on_front(points, "tpot_p99_ms") == {1}
    assert on_front(points[:1], "tpot_p99_ms") == set()
