"""The state file of a run, as other processes read it."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

import entrypoint
from data.lock import locked
from errors import EngineError, OutputError
from mlperf import state
from mlperf.state import RunState


def content(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "state.json").read_text())


def test_it_goes_from_start_to_end(tmp_path: Path) -> None:
    with locked(tmp_path / ".lock") as lock, RunState(tmp_path, lock) as run:
        assert content(tmp_path)["state"] == "starting"
        assert content(tmp_path)["pid"] == os.getpid()
        run.enter("running", 3)
        run.count()
        run.enter("grading")
        now = content(tmp_path)
        assert (now["state"], now["finished"], now["of"]) == ("grading", 1, 3)
    assert content(tmp_path)["state"] == "done"
    assert content(tmp_path)["error"] is None
    assert entrypoint.before_failing == []


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (EngineError("rank 1 has died"), "rank 1 has died"),
        (KeyboardInterrupt(), "interrupted"),
        (entrypoint.Terminated(None), "terminated"),
        (KeyError("x"), "internal error: KeyError: 'x'"),
    ],
)
def test_it_names_the_failure(tmp_path: Path, error: BaseException, reason: str) -> None:
    with pytest.raises(type(error)), locked(tmp_path / ".lock") as lock, RunState(tmp_path, lock):
        raise error
    assert (content(tmp_path)["state"], content(tmp_path)["error"]) == ("failed", reason)


def test_it_is_updated_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "EVERY_S", 0.01)
    with locked(tmp_path / ".lock") as lock, RunState(tmp_path, lock) as run:
        run.count()
        while not content(tmp_path)["finished"]:
            pass
        for callback in entrypoint.before_failing:  # as where another thread ends the process
            callback("rank 1 has died")
        run.count()
    assert content(tmp_path)["error"] == "rank 1 has died"


def test_it_needs_a_writable_directory(tmp_path: Path) -> None:
    with locked(tmp_path / ".lock") as lock, pytest.raises(OutputError, match=r"state\.json"):
        RunState(tmp_path / "none", lock).__enter__()
