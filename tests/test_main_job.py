"""The main job as its users run it: entry scripts, torchrun, the bundled model, real LoadGen."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest

from tests.jobs import without_mtp

ROOT = Path(__file__).parent.parent
TINY = ROOT / "data" / "tiny"
DATA = ["--input-file", str(TINY / "final_output.pkl")]
MODEL = ["--model", str(TINY / "model"), "--device", "cpu"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
FIGURES = re.compile(r"'exact_match':\s([\d.]+), 'tokens_per_sample':\s([\d.]+)")

pytestmark = [pytest.mark.slow, pytest.mark.engine, pytest.mark.timeout(600)]


def call(*words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, cwd=cwd, capture_output=True, text=True, check=False)


def figures(printed: str) -> tuple[float, float]:
    """exact_match and tokens_per_sample, read as the official checker reads them."""
    found = FIGURES.search(printed)
    assert found, printed
    return float(found[1]), float(found[2])


@pytest.fixture(scope="module")
def clone(readme) -> Path:
    """The folder in which the README's commands have been run."""
    readme.run("pytorch")
    return readme.copy


@pytest.fixture(scope="module")
def accuracy(clone: Path) -> Path:
    """The demo's accuracy run: Offline, all rows, two processes."""
    return clone / "mlperf_results" / "demo" / "offline" / "accuracy"


def grade(*options: str) -> tuple[float, float]:
    """What eval_accuracy.py prints of a file."""
    problems = ["--livecodebench-file", str(TINY / "livecodebench.jsonl")]
    ended = call(sys.executable, "eval_accuracy.py", *options, *problems)
    assert ended.returncode == 0, ended.stderr
    return figures(ended.stdout)


def test_accuracy_agrees_with_the_figure_beside_the_weights(accuracy: Path) -> None:
    exact_match, _ = figures((accuracy / "accuracy.txt").read_text())
    kept = json.loads((TINY / "scores.json").read_text(encoding="utf-8"))
    assert abs(exact_match - kept["exact_match"]) <= 1.0


def test_log_pickle_and_parquet_are_graded_alike(accuracy: Path, tmp_path: Path) -> None:
    said = figures((accuracy / "accuracy.txt").read_text())
    out = ["--output-file", str(tmp_path / "evaluated.pkl")]
    log = ["--dataset-file", DATA[1], *MODEL[:2]]
    assert grade("--input-file", str(accuracy / "results.pkl"), *out) == said
    assert grade("--input-file", str(accuracy / "results.parquet"), *out) == said
    assert grade("--input-file", str(accuracy / "mlperf_log_accuracy.json"), *log, *out) == said


def test_a_converted_model_answers_as_the_original(clone: Path) -> None:
    original = pd.read_pickle(clone / "data" / "pytorch_output.pkl")
    converted = pd.read_pickle(clone / "data" / "converted.pkl")
    assert len(original) == 32
    assert len(converted) == 8
    assert list(converted.tok_model_output) == list(original.tok_model_output.head(8))


@pytest.mark.parametrize(("model", "dtype"), [("model", "float32"), ("model-fp8", "bfloat16")])
def test_every_precision_keeps_the_score(
    model: str, dtype: str, accuracy: Path, tmp_path: Path
) -> None:
    output = tmp_path / "answers.pkl"
    options = ["--model", str(TINY / model), "--dtype", dtype, "--output-file", str(output)]
    answered = call(sys.executable, "run_eval.py", "--backend", "pytorch", *DATA, *options)
    assert answered.returncode == 0, answered.stderr
    said = figures((accuracy / "accuracy.txt").read_text())
    assert abs(grade("--input-file", str(output))[0] - said[0]) <= 2.0


@pytest.mark.parametrize("folder", ["demo/offline", "server", "interactive"])
def test_performance_run_in_each_mode(folder: str, clone: Path) -> None:
    left = clone / "mlperf_results" / folder / "performance"
    record = json.loads((left / "run.json").read_text())
    assert record["submittable"] is False
    assert record["figures"]["tokens_per_second"] > 0
    assert ("ttft_p99_ms" in record["figures"]) == ("offline" not in folder)
    results = pd.read_pickle(left / "results.pkl")
    assert len(results) >= 10
    assert results.query_id.is_unique
    assert len(pd.read_parquet(left / "results.parquet")) == len(results)


def test_drafts_are_told_of_at_the_end(readme, clone: Path) -> None:
    [block] = [block for block in readme.run("pytorch") if "--speculative" in block.script]
    said = re.findall(r"drafts: ([\d.]+) tokens of an answer in a step", block.ended.stderr)
    assert len(said) == 1
    assert float(said[0]) > 1.2  # the first rows are AIME's, whose digits are hard to guess
    engine = clone / "mlperf_results" / "interactive" / "performance" / "engine.json"
    assert json.loads(engine.read_text())["speculative"] is True


def test_a_model_without_mtp_layer_is_refused_with_one_line(tmp_path: Path) -> None:
    words = ["run_mlperf.py", "--backend", "pytorch", "--mode", "interactive", "--speculative"]
    model = without_mtp(tmp_path)
    ended = call(
        sys.executable, *words, *DATA, "--model", str(model), "--output-dir", str(tmp_path)
    )
    assert ended.returncode == 6
    assert ended.stderr.splitlines()[-1] == (
        f"error: {model}/config.json: this model has no MTP layer for --speculative"
    )


def test_a_killed_rank_ends_the_run_and_keeps_what_was_finished(tmp_path: Path) -> None:
    options = ["--mode", "offline", "--accuracy", "--output-dir", str(tmp_path)]
    words = [*TORCHRUN, "run_mlperf_mpi.py", *options, *DATA, *MODEL, "--max-running", "4"]
    with subprocess.Popen(words, cwd=ROOT, stderr=subprocess.DEVNULL) as agent:
        journal = tmp_path / "offline" / "accuracy" / "completions.journal.jsonl"
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
    first = json.loads(journal.read_text().splitlines()[0])
    assert first["token_ids"]


def test_processes_that_do_not_divide_the_heads(tmp_path: Path) -> None:
    words = [*TORCHRUN[:-1], "--nproc_per_node=3", "run_mlperf_mpi.py", *DATA, *MODEL]
    ended = call(*words, "--output-dir", str(tmp_path))
    assert ended.returncode != 0
    assert ended.stderr.count("error: ") == 1
    assert re.search(r"exitcode\s*: 9", ended.stderr)


def test_the_mpi_script_without_torchrun() -> None:
    ended = call(sys.executable, "run_mlperf_mpi.py", *DATA, *MODEL)
    assert ended.returncode == 10
    assert ended.stderr.startswith("error: ")
    assert "torchrun" in ended.stderr
