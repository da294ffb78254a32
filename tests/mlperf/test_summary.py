"""The table of finished runs."""

import json
from pathlib import Path

import pandas as pd
import pytest

from errors import ColumnsError, InputFileError
from mlperf.summary import summary


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
    cells = {line.split("  ")[0]: line.split() for line in lines}
    assert cells["offline, accuracy"][2:] == ["3.25", "400", "-", "-", "50.00", "-"]
    assert cells["server, performance"][2:] == ["3.25", "400", "12.3", "-", "-", "-"]
    assert ["gpqa", "100.00"] in [line.split() for line in lines]
    assert ["math500", "50.00"] in [line.split() for line in lines]
    assert lines[-2:] == [f"  {graded}", f"  {tmp_path / 'server' / 'performance'}"]


def test_a_folder_without_a_finished_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match=str(tmp_path)):
        summary(tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"null", b"[1]", b'{"mode": "server"}', b"\xff\xfe", b"[" * 100_000, b"version h"],
)
def test_a_record_that_is_none_is_named(content: bytes, tmp_path: Path) -> None:
    run = finished_run(tmp_path, "server", "performance")
    (run / "run.json").write_bytes(content)
    with pytest.raises(InputFileError, match=r"server/performance/run.json: not a run.json"):
        summary(tmp_path)


def test_a_folder_in_the_place_of_a_record_is_named(tmp_path: Path) -> None:
    (tmp_path / "run.json").mkdir()
    with pytest.raises(InputFileError, match=r"run.json: can't be read: Is a directory"):
        summary(tmp_path)


def test_graded_results_that_are_none_are_named(tmp_path: Path) -> None:
    run = finished_run(tmp_path, "offline", "accuracy")
    graded = run / "results_evaluated.parquet"
    with pytest.raises(InputFileError, match=r"results_evaluated.parquet: can't be read"):
        summary(tmp_path)
    graded.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(InputFileError, match=r"results_evaluated.parquet: "):
        summary(tmp_path)
    pd.DataFrame({"dataset": ["gpqa"]}).to_parquet(graded)
    with pytest.raises(ColumnsError, match="prompt_accuracy"):
        summary(tmp_path)
