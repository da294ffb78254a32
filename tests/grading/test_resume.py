"""A run killed by SIGKILL at any moment and started again has the same results."""

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from data.samples import read_frame
from tests.effort import cases

# stdout, parquet and pickle files, report, and accuracy.txt
Results = tuple[bytes, pd.DataFrame, pd.DataFrame, dict, str]
ROOT = Path(__file__).parents[2]
KILLS, BETWEEN = cases(8, 20), 4  # after so many kills, a run may finish
TESTS = [{"input": f"{n}", "output": f"{2 * n}", "testtype": "stdin"} for n in range(3)]
PROBLEM = {
    "question_id": "double",
    "public_test_cases": json.dumps(TESTS),
    "private_test_cases": "[]",
    "metadata": "{}",
}


def _rows() -> Iterator[dict]:
    rng = random.Random(6)
    for number in range(300):
        kind = rng.choice(["aime", "gpqa", "math500", "math500", "livecodebench"])
        right = rng.random() < 0.7
        truth: object = "B" if kind == "gpqa" else number
        text = {
            "aime": rf"so \boxed{{{number if right else 0}}} is it",
            "gpqa": f"after {number} steps\nANSWER: {'B' if right else 'C'}",
            "math500": rf"\boxed{{x+{number}}}" if right else rf"\boxed{{{number}y",
            "livecodebench": f"```python\nprint(int(input()) * {3 - right})  # {number}\n```",
        }[kind]
        truth = {"math500": f"{number}+x", "livecodebench": "double"}.get(kind, truth)
        yield {
            "dataset": kind,
            "ground_truth": truth,
            "model_output": text,
            "tok_model_output_len": len(text),
            "tok_model_output": list(range(number % 90)),
        }


def _start(folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(ROOT / "eval_accuracy.py"), "--input-file", "a.jsonl"]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def _folder(path: Path) -> Path:
    path.mkdir()
    (path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in _rows()))
    (path / "livecodebench.jsonl").write_text(json.dumps(PROBLEM) + "\n")
    return path


def _results(folder: Path) -> Results:
    """Run to the end. Returns stdout, both files, the report, and accuracy.txt."""
    process = _start(folder)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    parquet, pickled = (read_frame(folder / f"a_evaluated{end}") for end in (".parquet", ".pkl"))
    report = json.loads((folder / "a_report.json").read_text())
    return out, parquet, pickled, report, (folder / "accuracy.txt").read_text()


def _grades(folder: Path) -> list[dict]:
    lines = (folder / "a_grades.jsonl").read_bytes().split(b"\n")[:-1]
    grades = [json.loads(line) for line in lines]
    return [{name: value for name, value in grade.items() if name != "seconds"} for grade in grades]


def _assert_same(one: Results, other: Results) -> None:
    assert one[0] == other[0]
    pd.testing.assert_frame_equal(one[1], other[1])
    left, right = (
        frame.assign(tok_model_output=frame["tok_model_output"].map(list))
        for frame in (one[2], other[2])
    )
    pd.testing.assert_frame_equal(left, right)
    assert one[3:] == other[3:]


@pytest.mark.slow
def test_killed_at_random_moments_it_comes_to_the_same(tmp_path: Path) -> None:
    rng = random.Random(1)
    whole = _folder(tmp_path / "whole")
    start = time.monotonic()
    wanted = _results(whole)
    seconds = time.monotonic() - start
    known = {grade["sample_index"]: grade for grade in _grades(whole)}
    assert len(known) == 300
    kept = []
    for number in range(KILLS):
        folder = tmp_path / f"killed{number // BETWEEN}"
        if not folder.exists():
            _folder(folder)
        process = _start(folder)
        time.sleep(rng.uniform(0, seconds))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if (folder / "a_grades.jsonl").exists():
            grades = _grades(folder)
            assert all(grade == known[grade["sample_index"]] for grade in grades)
            kept.append(len(grades))
        if number % BETWEEN == BETWEEN - 1:
            _assert_same(_results(folder), wanted)
            # no row was graded twice: what was there was kept
            assert len(_grades(folder)) == 300
    assert any(0 < count < 300 for count in kept), "no kill came while rows were graded"


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_where_it_stopped(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "killed")
    process = _start(folder)
    log = folder / "a_grades.jsonl"
    until = time.monotonic() + 60
    while not (log.exists() and log.read_bytes().count(b"\n") >= 20):
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.01)
    process.kill()
    process.communicate()
    before = log.read_bytes()
    assert before.count(b"\n") < 300
    torn = before[:-7]  # as a crash of the machine may leave it
    log.write_bytes(torn)
    whole = torn[: torn.rindex(b"\n") + 1]
    _results(folder)
    assert log.read_bytes().startswith(whole)
    assert len({grade["sample_index"] for grade in _grades(folder)}) == 300
    assert len(_grades(folder)) == 300
