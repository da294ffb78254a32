"""The main job as its users run it: entry scripts, torchrun, the bundled model, real LoadGen."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from data.journal import read_journal
from tests.effort import THOROUGH
from tests.jobs import ROOT, TINY, call, grade

DATA = ["--input-file", str(TINY / "final_output.pkl")]
MODEL = ["--model", str(TINY / "model"), "--device", "cpu"]
TORCHRUN = ["-m", "torch.distributed.run", "--nproc_per_node=2"]

pytestmark = [pytest.mark.slow, pytest.mark.engine, pytest.mark.timeout(1200)]


def test_fp8_weights_keep_the_score(tmp_path: Path) -> None:
    """The score of bfloat16 is in the README's tests."""
    output = tmp_path / "answers.pkl"
    dtype = "bfloat16" if THOROUGH else "float32"  # bfloat16 is slow on most CPUs
    options = ["--model", str(TINY / "model-fp8"), "--dtype", dtype, "--output-file", str(output)]
    answered = call("run_eval.py", "--backend", "pytorch", *DATA, *options)
    assert answered.returncode == 0, answered.stderr
    kept = json.loads((TINY / "scores.json").read_text(encoding="utf-8"))["exact_match"]
    assert abs(grade("--input-file", str(output))[0] - kept) <= 2.0


def test_a_killed_rank_ends_the_run_and_keeps_what_was_finished(tmp_path: Path) -> None:
    options = ["--mode", "offline", "--accuracy", "--output-dir", str(tmp_path)]
    words = [
        sys.executable,
        *TORCHRUN,
        "run_mlperf_mpi.py",
        *options,
        *DATA,
        *MODEL,
        "--max-running",
        "4",
    ]
    log = tmp_path / "said"
    with log.open("w") as file, subprocess.Popen(words, cwd=ROOT, stderr=file) as agent:
        journal = tmp_path / "offline" / "accuracy" / "completions.journal"
        until = time.monotonic() + 240
        while not (journal.exists() and journal.stat().st_size):
            assert agent.poll() is None
            assert time.monotonic() < until
            time.sleep(0.1)
        ranks = psutil.Process(agent.pid).children()
        assert len(ranks) == 2
        follower = next(p for p in ranks if p.environ()["RANK"] == "1")
        os.kill(follower.pid, signal.SIGKILL)
        assert agent.wait(timeout=30) != 0
    _, alive = psutil.wait_procs(ranks, timeout=5)
    assert not alive
    assert all(len(one.token_ids) for _, one in read_journal(journal))
    assert f"error: rank 1 of 2 (process {follower.pid} on " in log.read_text()
    assert "internal error" not in log.read_text()


def test_processes_that_do_not_divide_the_heads(tmp_path: Path) -> None:
    words = [*TORCHRUN[:-1], "--nproc_per_node=3", "run_mlperf_mpi.py", *DATA, *MODEL]
    ended = call(*words, "--output-dir", str(tmp_path))
    assert ended.returncode != 0
    assert ended.stderr.count("error: ") == 1
    assert "error: 4 attention heads can't be split over 3 processes\n" in ended.stderr
    assert "Error: " not in ended.stderr.split("error:")[0]
    assert re.search(r"exitcode\s*: 9", ended.stderr)


def test_the_mpi_script_without_torchrun() -> None:
    ended = call("run_mlperf_mpi.py", *DATA, *MODEL)
    assert ended.returncode == 10
    assert ended.stderr.startswith("error: ")
    assert "torchrun" in ended.stderr
