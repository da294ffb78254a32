"""The table of finished runs."""

import json
from pathlib import Path

import pandas as pd
import pytest

from mlperf.summary import summary
from ref_dsinfer.errors import InputFileError


def finished_run(folder: Path, mode: str, test: str, **figures: float | None) -> Path:
    where = folder / mode / test
    where.mkdir(parents=True)
    (where / "run.json").write_text(json.dumps({"mode": mode, "test": test, "figures": figures}))
    return where


def test_every_run_is_a_line_and_every_task_of_an_accuracy_run(tmp_path: Path) -> None:
    rate = {"samples_per_second": 3.25, "tokens_per_second": 400.4}
    finished_run(tmp_path, "server", "performance", **rate, ttft_p99_ms=12.34, tpot_p99_ms=None)
    graded = finished_run(tmp_path, "offline", "accuracy", **rate, exact_match=50.0)
    pd.DataFrame(
        {"dataset": ["gpqa", "math500", "math500"], "prompt_accuracy": [100.0, 0.0, 100.0]}
    ).to_parquet(graded / "results_evaluated.parquet")

    lines = summary(tmp_path).splitlines()
    found = {line.split("  ")[0]: line.split() for line in lines}
    assert found["offline, accuracy"][2:] == ["3.25", "400", "-", "-", "50.00", "-"]
    assert found["server, performance"][2:] == ["3.25", "400", "12.3", "-", "-", "-"]
    assert ["gpqa", "100.00"] in [line.split() for line in lines]
    assert ["math500", "50.00"] in [line.split() for line in lines]
    assert lines[-2:] == [f"  {graded}", f"  {tmp_path / 'server' / 'performance'}"]


def test_a_folder_without_a_finished_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match=str(tmp_path)):
        summary(tmp_path)
