"""Charts over time: no interval is too short for its rate, and nothing is lost by merging."""

from pathlib import Path
from typing import Any

import pytest

from data.timeline import Metadata, write_timeline
from mlperf import result_folder
from mlperf.report_page import figures
from tests.mlperf.test_result_folder import BEGAN, run_in


def throughput(folder: Path, ends: list[float], tokens: list[int]) -> list[tuple[float, float]]:
    """The rows of the throughput chart's table, of a run with these seconds."""
    run_in(folder)
    every: dict[str, list[Any]] = {"arrival_s": [0.0, *ends[:-1]], "finish_s": ends}
    requests: dict[str, list[Any]] = {"arrival_s": [0.0], "finish_s": [ends[-1]]}
    about = Metadata("offline", "performance", "echo", BEGAN)
    write_timeline(folder / "timeline.parquet", requests, every | {"tokens": tokens}, about)
    chart, *_ = figures.over_time(result_folder.read(folder))
    return [(float(at), float(str(rate).replace(",", ""))) for at, rate in chart.table.rows]


def test_the_last_moment_has_no_rate_of_its_own(tmp_path: Path) -> None:
    assert throughput(tmp_path, [1.0, 2.0, 2.01], [100, 100, 50]) == [
        (0, 100),
        (1, pytest.approx(150 / 1.01, rel=1e-3)),
    ]


def test_a_long_run_is_merged_and_keeps_its_tokens(tmp_path: Path) -> None:
    rows = throughput(tmp_path, [one + 1.0 for one in range(1000)], list(range(1000)))
    assert len(rows) <= figures.POINTS
    width = rows[1][0]
    assert sum(rate * width for _, rate in rows[:-1]) < sum(range(1000))
    assert rows[0][1] == sum(range(round(width))) / width
