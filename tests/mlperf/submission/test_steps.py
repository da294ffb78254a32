"""`all`: every run that a submission needs, in order, each of them once."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from errors import SubmissionError, UsageError
from mlperf.submission import steps
from tests.jobs import GIVEN, ROOT
from tests.mlperf.submission.conftest import Command

TESTS = ["rate", "performance", "accuracy", "compliance"]
SHORT = ["--backend", "echo", *GIVEN, "--num-samples", "20"]


def plan(output_dir: Path, *options: str, closed: bool = False) -> steps.Plan:
    return steps.Plan(output_dir, ("offline",), options, 0, None, closed)


def start(tmp_path: Path, *options: str) -> subprocess.Popen[str]:
    tree = ("--org", "Acme", "--system", "box", "--division", "open", "--demo")
    where = ("--modes", "offline", "--output-dir", str(tmp_path / "runs"))
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "mlperf.submission", "all", str(tmp_path / "tree"), *tree),
            *(*where, "--", *options),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_runs_are_done_in_order_and_once(tmp_path: Path) -> None:
    process = start(tmp_path, *SHORT, "--engine-arg", "first_token_ms=1000")
    state = tmp_path / "runs" / "offline" / "performance" / "state.json"
    while not (state.exists() and json.loads(state.read_text())["state"] == "running"):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert json.loads(state.read_text())["state"] == "failed"

    (tmp_path / "runs" / "server").mkdir()  # another mode, begun by another call
    for began in (TESTS[1:], []):
        process = start(tmp_path, *SHORT, "--engine-arg", "first_token_ms=1000")
        out, err = process.communicate(timeout=120)
        runs = re.findall(r"steps: \d of 4: offline, (\w+): (.*)", err)
        assert [test for test, _ in runs] == TESTS, err
        assert [test for test, text in runs if not text.startswith("done already")] == began
        # the runs are short, which is the only reason against them
        assert process.returncode == 15
        assert re.search(r"box\.json: \d+ fields to be filled in before the runs end", out)
        assert set(re.findall(r"^\S+/offline: \S+ (\w+): ", out, re.MULTILINE)) == {"settings"}
    rate = json.loads((tmp_path / "runs" / "offline" / "rate" / "rate.json").read_text())
    user_conf = (tmp_path / "runs" / "user.conf").read_text()
    assert f"deepseek-r1.Offline.target_qps = {rate['target_qps']:g}\n" in user_conf

    _, err = start(tmp_path, *SHORT, "--seed", "3").communicate(timeout=60)
    assert "has runs with other options" in err


@pytest.mark.parametrize("option", ["--mode", "--accuracy", "--output-dir=x", "--target-qps=2"])
def test_options_that_differ_from_run_to_run_are_refused(option: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"{option.partition('=')[0]}: this is set for each run"):
        steps.run_all(plan(tmp_path, *SHORT, option))


def test_options_are_those_of_the_script_that_is_started(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    by_torchrun = steps.Plan(tmp_path, ("offline",), ("--tensor-parallel", "2"), 2, None, False)
    with pytest.raises(SystemExit):
        steps.run_all(by_torchrun)
    message = "run_mlperf_mpi.py: error: unrecognized arguments: --tensor-parallel 2\n"
    assert capsys.readouterr().err.endswith(message)


@pytest.mark.slow
def test_a_run_that_would_be_refused_is_refused_before_the_first(tmp_path: Path) -> None:
    with pytest.raises(SubmissionError, match=r"the performance run of offline .*20 rows, not the"):
        steps.run_all(plan(tmp_path, *SHORT, closed=True))
    assert not list(tmp_path.rglob("*.json"))


def test_a_run_that_would_not_start_is_told_before_the_first(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SubmissionError, match="the rate run of offline would end with exit code 2"):
        steps.run_all(plan(tmp_path, *SHORT, "--engine-arg", "first_tokn_ms=1"))
    assert "echo has no option 'first_tokn_ms'" in capfd.readouterr().err
    assert not list(tmp_path.rglob("*.json"))  # other options may be tried next


def test_modes_that_the_closed_division_needs(tmp_path: Path, run: Command) -> None:
    words = ("all", tmp_path / "tree", "--org", "Acme", "--system", "box", "--modes", "offline")
    with pytest.raises(UsageError, match="--modes offline: one of Server and Interactive is req"):
        run(*words, "--output-dir", tmp_path / "runs", "--", *SHORT)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("state", "record", "done"),
    [
        ("done", {"loadgen_validity": "VALID"}, True),
        ("done", {"loadgen_validity": "INVALID"}, False),
        ("failed", {"loadgen_validity": "VALID"}, False),
        ("done", None, False),
    ],
)
def test_a_run_is_done_if_it_has_ended_well(
    state: str, record: dict[str, str] | None, done: bool, tmp_path: Path
) -> None:
    step = steps.Step(tmp_path, "server", "performance")
    assert not step.done
    step.folder.mkdir(parents=True)
    (step.folder / "state.json").write_text(json.dumps({"state": state}))
    if record is not None:
        (step.folder / "run.json").write_text(json.dumps(record))
    assert step.done == done


def test_an_accuracy_run_goes_on_where_it_may(tmp_path: Path) -> None:
    step = steps.Step(tmp_path, "server", "accuracy")
    step.folder.mkdir(parents=True)
    assert "--resume" not in step.words(plan(tmp_path))
    (step.folder / "completions.journal").touch()
    assert "--resume" in step.words(plan(tmp_path))
    assert "--resume" not in step.words(plan(tmp_path, closed=True))
