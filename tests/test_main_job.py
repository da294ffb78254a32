"""The main job as its users run it: entry scripts, torchrun, the bundled model, real LoadGen."""

import json
import re
from pathlib import Path

import pytest

from tests import forked
from tests.effort import THOROUGH
from tests.jobs import ROOT, TINY, grade
from tests.torchrun import Torchrun

DATA = ["--input-file", str(TINY / "final_output.pkl")]
MODEL = ["--model", str(TINY / "model"), "--device", "cpu"]

pytestmark = [pytest.mark.slow, pytest.mark.engine, pytest.mark.timeout(1200)]


def test_fp8_weights_keep_the_score(tmp_path: Path) -> None:
    """The score of bfloat16 is in the README's tests."""
    output = tmp_path / "answers.pkl"
    dtype = "bfloat16" if THOROUGH else "float32"  # bfloat16 is slow on most CPUs
    options = ["--model", str(TINY / "model-fp8"), "--dtype", dtype, "--output-file", str(output)]
    answered = forked.run("run_eval.py", "--backend", "pytorch", *DATA, *options, timeout=600)
    assert answered.returncode == 0, answered.stderr
    kept = json.loads((TINY / "scores.json").read_text(encoding="utf-8"))["exact_match"]
    assert abs(grade("--input-file", str(output))[0] - kept) <= 2.0


def test_processes_that_do_not_divide_the_heads(torchrun: Torchrun, tmp_path: Path) -> None:
    options = [*DATA, *MODEL, "--output-dir", tmp_path]
    ended = torchrun.run(3, ROOT / "run_mlperf_mpi.py", *options)
    assert ended.returncode != 0
    assert ended.stderr.count("error: ") == 1
    assert "error: 4 attention heads can't be split over 3 processes\n" in ended.stderr
    assert "Error: " not in ended.stderr.split("error:")[0]
    assert re.search(r"exitcode\s*: 9", ended.stderr)


def test_the_mpi_script_without_torchrun() -> None:
    ended = forked.run("run_mlperf_mpi.py", *DATA, *MODEL)
    assert ended.returncode == 10
    assert ended.stderr.startswith("error: ")
    assert "torchrun" in ended.stderr
