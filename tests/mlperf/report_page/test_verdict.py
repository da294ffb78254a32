"""What a report says first."""

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from mlperf import result_folder
from mlperf.report_page.page import render
from mlperf.report_page.verdict import Verdict, verdict
from tests.mlperf.test_result_folder import RECORD, STATE, run_in

NOW = datetime.fromisoformat("2026-11-27T12:00:00+00:00")
INVALID = {
    "loadgen_validity": "INVALID",
    "not_submittable_because": ["--target-qps instead of user.conf's", "INVALID: too slow"],
}
ACCURACY = RECORD | {"test": "accuracy", "figures": {}}


def of(folder: Path, record: Any, state: Any) -> Verdict:
    read = result_folder.read(run_in(folder, record, state))
    result = verdict(read, NOW)
    page = "".join(render(read, NOW))  # whatever the state, there is a page
    assert result.word in page.replace("&#39;", "'")
    return result


@pytest.mark.parametrize(
    ("record", "state", "word", "tone"),
    [
        (RECORD, STATE, "Valid, and nothing in this run rules out its submission", "good"),
        (RECORD | INVALID, STATE, "Invalid, can't be submitted", "bad"),
        (
            RECORD | INVALID | {"loadgen_validity": "VALID"},
            *(STATE, "Valid, but can't be submitted", "doubt"),
        ),
        (RECORD | {"test": "compliance"}, STATE, "TEST06 passed, and nothing in this run", "good"),
        (
            RECORD | {"test": "compliance", "not_submittable_because": ["TEST06: length"]},
            *(STATE, "TEST06 failed, can't be submitted", "bad"),
        ),
        (ACCURACY, STATE, "Not valid", "bad"),  # its grades are missing
        (None, STATE | {"state": "failed", "error": "interrupted"}, "Interrupted", "bad"),
        (None, STATE | {"state": "failed", "error": "terminated"}, "Terminated", "bad"),
        (None, STATE | {"state": "failed", "error": "no memory"}, "Failed", "bad"),
        (None, STATE | {"state": "running"}, "Killed", "bad"),
        (None, STATE | {"state": "running", "updated": NOW.isoformat()}, "Not finished yet", "bad"),
        (RECORD, STATE | {"pid": 8}, "Unknown", "bad"),
        (RECORD, None, "Valid, and nothing", "good"),
    ],
)
def test_the_word(record: Any, state: Any, word: str, tone: str, tmp_path: Path) -> None:
    result = of(tmp_path, record, state)
    assert result.word.startswith(word)
    assert result.tone == tone


def test_why_a_run_is_invalid_comes_before_why_it_could_not_be_submitted(tmp_path: Path) -> None:
    result = of(tmp_path, RECORD | INVALID, STATE)
    assert result.lines == ["INVALID: too slow"]
    assert result.reasons == ["--target-qps instead of user.conf's"]


def test_a_run_that_did_not_finish_says_how_far_it_came(tmp_path: Path) -> None:
    state = STATE | {"state": "failed", "error": "no memory", "of": 4388}
    result = of(tmp_path, None, state)
    assert result.lines[0] == "The run ended with an error: no memory"
    assert result.lines[1].startswith("4 of 4,388 samples were finished.")


def test_resumed_comes_first(tmp_path: Path) -> None:
    record = RECORD | {"resumed": {"samples": 3, "of": 12}}
    assert of(tmp_path, record, STATE).lines[0].startswith("Resumed: 3 of 12 samples")


def test_a_fault_is_said_and_turns_the_verdict_red(tmp_path: Path) -> None:
    record = RECORD | {"figures": {"tokens_per_second": 120.0}}
    result = of(tmp_path, record, STATE)
    assert "LoadGen's log says 100.0" in result.lines[0]
    assert result.tone == "bad"
