"""Failing runs of every kind: each ends in time, with a message, and loses no finished answer."""

import json
import random
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.journal import read_journal
from mlperf.run import JOURNAL
from mlperf.settings import MODES
from tests import forked
from tests.mlperf.test_run import assert_same_results

ROWS = 24
END_S = 30  # for a run that takes half a second to its fault
LATE_S = 0.5  # before a signal: what was finished then may still be on its way to the journal

# How a run ends, by fault: exit code, state, and the reason in the state file and the last line.
OUTCOMES = {
    "exception": (12, "failed", "the engine has failed"),
    "bug": (1, "failed", "internal error: RuntimeError: a bug"),
    "start": (12, "failed", "it does not start"),
    "hang": (12, "failed", "no token of any of 1 open requests for 1 s; the oldest, row "),
    "partial": (12, "failed", "the engine's stream ended before the answer"),
    "twice": (12, "failed", "the engine went on after the end of the answer"),
    "wrong id": (12, "failed", "the engine sampled id 2147483648"),
    "full disk": (11, "failed", "completions.journal: can't be written: File too large"),
    "SIGINT": (130, "failed", "interrupted"),
    "SIGTERM": (143, "failed", "terminated"),
    "crash": (-signal.SIGSEGV, "running", None),
    "empty": (0, "done", None),
    "long": (0, "done", None),
}

Run = Callable[..., "Ended"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


class Ended:
    """A finished run and its files."""

    def __init__(
        self, process: subprocess.CompletedProcess[str], results: Path, sent: Path
    ) -> None:
        self.code, self.stderr, self.results = process.returncode, process.stderr, results
        path = results / "state.json"
        self.state: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        # The full disk may have cut the last one, which has no end of line then.
        notes = [json.loads(line) for line in sent.read_text().split("\n")[:-1]]
        self.sent = [note for note in notes if "row" in note]
        self.signals_s = [note["at_s"] for note in notes if "row" not in note]

    def check(self, room: bool = True) -> None:
        """The journal has all finished answers as the engine sent them, and no others.

        Without `room` on the disk, it has the first ones.
        """
        path = self.results / JOURNAL
        kept = read_journal(path) if path.exists() else []
        sent = {note["row"]: note["ids"] for note in self.sent}
        assert all(sent[index] == list(one.token_ids) for index, one in kept)
        late_s = min(self.signals_s, default=float("inf")) - LATE_S
        if not room:
            assert kept
            assert [index for index, _ in kept] == [*sent][: len(kept)]
            return
        missing = sent.keys() - {index for index, _ in kept}
        assert not [note for note in self.sent if note["row"] in missing and note["at_s"] < late_s]
        assert len(kept) == len({index for index, _ in kept})
        if self.state and "grading" not in self.state["state"]:
            assert self.state["finished"] <= len(sent)


@pytest.fixture
def run(echo_model: Path, data_set: Callable[[int], Path], tmp_path: Path) -> Run:
    """Starts a run with a fault, and returns how it ended."""
    rows = data_set(ROWS)

    def start(
        fault: str, mode: str, *options: object, accuracy: bool = False, **own: object
    ) -> Ended:
        sent = tmp_path / "sent"
        sent.write_bytes(b"")
        arguments = {"fault": fault, "sent": sent, **own}
        process = forked.run(
            *("tests/mlperf/faulty.py", "--backend", "faulty", "--model", echo_model),
            *("--input-file", rows, "--mode", mode, "--num-samples", ROWS, "--target-qps", 200),
            *(word for one in arguments.items() for word in ("--engine-arg", f"{one[0]}={one[1]}")),
            *(*options, *(["--accuracy"] if accuracy else [])),
            cwd=tmp_path,
            timeout=END_S,
        )
        test = "accuracy" if accuracy else "performance"
        return Ended(process, tmp_path / "mlperf_results" / mode / test, sent)

    return start


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fault", OUTCOMES)
def test_a_fault_ends_the_run_with_its_code_and_state(run: Run, fault: str, mode: str) -> None:
    ended = run(fault, mode, "--stall-timeout", 1, at=11)
    code, state, reason = OUTCOMES[fault]
    assert ended.code == code, ended.stderr
    assert ended.state["state"] == state
    if reason:
        assert reason in ended.state["error"]
        last = ended.stderr.splitlines()[-1]
        assert reason.removeprefix("internal error: ") in last
    if state == "done":
        assert len(ended.sent) == ROWS
    if fault != "start":
        assert ended.sent
    if fault != "bug":
        assert "Traceback" not in ended.stderr
    ended.check(room=fault != "full disk")


@pytest.mark.parametrize("seed", range(25))
def test_a_kill_at_any_moment_loses_nothing(run: Run, seed: int) -> None:
    mode = list(MODES)[seed % len(MODES)]
    ended = run("kill", mode, after_s=random.Random(seed).uniform(0, 0.5))
    assert ended.code in (0, -signal.SIGKILL), ended.stderr
    ended.check()


@pytest.mark.parametrize("seed", range(4))
def test_a_signal_at_any_moment_ends_the_run_with_a_message(run: Run, seed: int) -> None:
    fault = ("SIGINT", "SIGTERM")[seed % 2]
    ended = run(fault, "offline", after_s=random.Random(seed).uniform(0, 0.3), accuracy=True)
    code, state, reason = OUTCOMES[fault]
    assert ended.code == code, ended.stderr
    assert (ended.state["state"], ended.state["error"]) == (state, reason)
    assert "Traceback" not in ended.stderr
    ended.check()


def test_runs_that_are_killed_and_resumed_come_to_the_same_results(
    run: Run, tmp_path: Path
) -> None:
    whole = run("none", "offline", accuracy=True)
    assert whole.code == 0, whole.stderr
    expected = (tmp_path / "mlperf_results").rename(tmp_path / "whole") / "offline" / "accuracy"
    moments = random.Random(0)
    resume: list[str] = []
    kills = kept = 0
    while kills < 20:
        after_s = moments.uniform(0.05, 0.35)
        ended = run("kill", "offline", *resume, accuracy=True, after_s=after_s)
        if ended.code == 0:
            assert_same_results(ended.results, expected)
            resume, kept = [], 0
            continue
        assert ended.code == -signal.SIGKILL, ended.stderr
        kills += 1
        count = len(read_journal(ended.results / JOURNAL)) if resume or ended.sent else 0
        assert count >= kept
        resume, kept = ["--resume"], count
    ended = run("none", "offline", "--resume", accuracy=True)
    assert ended.code == 0, ended.stderr
    assert_same_results(ended.results, expected)
