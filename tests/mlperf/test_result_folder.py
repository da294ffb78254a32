"""A run's folder is read as far as possible, and every fault in it is named."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from data.timeline import Metadata, write_timeline
from errors import InputFileError
from mlperf import result_folder
from mlperf.report import MARK

STATE = {
    "state": "done",
    "finished": 4,
    "of": 4,
    "pid": 7,
    "host": "one",
    "started": "2026-11-27T10:00:00+00:00",
    "updated": "2026-11-27T10:05:00+00:00",
    "error": None,
}
BEGAN = datetime.fromisoformat(str(STATE["started"])).timestamp() + 1
PROCESS = {name: STATE[name] for name in ("pid", "host", "started")}
FIGURES = {"samples_per_second": 2.0, "tokens_per_second": 100.0}
RECORD: dict[str, Any] = {
    "mode": "offline",
    "test": "performance",
    "backend": "echo",
    "figures": FIGURES,
    "loadgen_validity": "VALID",
    "not_submittable_because": [],
    "process": PROCESS,
}


def run_in(folder: Path, record: Any = RECORD, state: Any = STATE) -> Path:
    """A result folder; None: without that file."""
    for name, content in (("run.json", record), ("state.json", state)):
        if content is not None:
            (folder / name).write_text(json.dumps(content))
    entries = [
        {"key": f"result_{name}", "value": value, "metadata": {}} for name, value in FIGURES.items()
    ]
    lines = [f"{MARK}{json.dumps(entry)}\n" for entry in entries]
    (folder / "mlperf_log_detail.txt").write_text("".join(lines))
    every: dict[str, list[Any]] = {"arrival_s": [0.0], "finish_s": [1.0]}
    about = Metadata("offline", "performance", "echo", BEGAN)
    requests = every | {"request_id": [0], "sample_index": [0], "answer_tokens": [3]}
    write_timeline(folder / "timeline.parquet", requests, every | {"tokens": [3]}, about)
    return folder


def test_a_whole_folder_has_no_fault(tmp_path: Path) -> None:
    folder = result_folder.read(run_in(tmp_path))
    assert folder.faults == []
    assert folder.finished
    assert folder.figures == FIGURES
    assert folder.timeline is not None


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match=str(tmp_path)):
        result_folder.read(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"null", b"[1]", b"\xff\xfe", b"[" * 99_999, b'{"a":1}']
)
@pytest.mark.parametrize(
    "name", ["run.json", "state.json", "timeline.parquet", "mlperf_log_detail.txt"]
)
def test_a_damaged_file_is_named_and_the_rest_is_read(
    name: str, content: bytes, tmp_path: Path
) -> None:
    run_in(tmp_path)
    if name == "mlperf_log_detail.txt":
        content = MARK.encode() + content + b"\n" + MARK.encode()
    (tmp_path / name).write_bytes(content)
    folder = result_folder.read(tmp_path)
    assert any(str(tmp_path / name) in fault for fault in folder.faults), folder.faults
    parts = (folder.record, folder.state, folder.timeline, folder.log)
    assert sum(part is None for part in parts) == 1


def test_figures_that_the_log_has_otherwise_are_a_fault(tmp_path: Path) -> None:
    wrong = RECORD | {"figures": FIGURES | {"tokens_per_second": 120.0}}
    (fault,) = result_folder.read(run_in(tmp_path, wrong)).faults
    assert fault == ("run.json says that tokens_per_second is 120.0, but LoadGen's log says 100.0")


def test_an_earlier_run_s_figures_are_not_taken_for_this_one_s(tmp_path: Path) -> None:
    later = STATE | {"state": "failed", "pid": 8, "error": "the journal is of other inputs"}
    folder = result_folder.read(run_in(tmp_path, state=later))
    assert not folder.finished
    assert folder.figures == {}
    assert (folder.log, folder.timeline) == (None, None)


def test_an_earlier_run_s_timeline_is_not_taken_for_this_one_s(tmp_path: Path) -> None:
    later = STATE | {"state": "failed", "started": STATE["updated"], "error": "no memory"}
    folder = result_folder.read(run_in(tmp_path, None, later))
    assert folder.timeline is None
    assert folder.faults == [f"{tmp_path / 'timeline.parquet'}: it is an earlier run's"]
