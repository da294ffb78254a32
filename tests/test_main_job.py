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
def accuracy_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of an Offline accuracy run over the whole data set, and what it printed."""
    out = tmp_path_factory.mktemp("mlperf")
    options = ["--mode", "offline", "--accuracy", "--output-dir", str(out)]
    ended = call(*TORCHRUN, "run_mlperf_mpi.py", *options, *DATA, *MODEL)
    assert ended.returncode == 0, ended.stderr
    return out / "offline" / "accuracy", ended.stdout


def test_accuracy_agrees_with_the_figure_beside_the_weights(accuracy_run) -> None:
    exact_match, _ = figures(accuracy_run[1])
    kept = json.loads((TINY / "scores.json").read_text(encoding="utf-8"))
    assert abs(exact_match - kept["exact_match"]) <= 1.0


def test_log_pickle_and_parquet_are_graded_alike(accuracy_run, tmp_path: Path) -> None:
    folder, printed = accuracy_run
    sources = {
        "results.pkl": [],
        "results.parquet": [],
        "mlperf_log_accuracy.json": ["--dataset-file", DATA[1], *MODEL[:2]],
    }
    for name, options in sources.items():
        ended = call(
            sys.executable,
            "eval_accuracy.py",
            *("--input-file", str(folder / name)),
            *("--livecodebench-file", str(TINY / "livecodebench.jsonl")),
            *("--output-file", str(tmp_path / f"{name}_evaluated.pkl")),
            *options,
        )
        assert ended.returncode == 0, ended.stderr
        assert figures(ended.stdout) == figures(printed), name


def test_run_eval_gives_the_answers_of_loadgen(accuracy_run, tmp_path: Path) -> None:
    output = tmp_path / "pytorch_output.pkl"
    options = ["--output-file", str(output), "--num-samples", "24", "--dtype", "float32"]
    ended = call(*TORCHRUN, "run_eval_mpi.py", *options, *DATA, *MODEL)
    assert ended.returncode == 0, ended.stderr
    two = pd.read_pickle(output)
    alone = call(sys.executable, "run_eval.py", "--backend", "pytorch", *options, *DATA, *MODEL)
    assert alone.returncode == 0, alone.stderr
    one = pd.read_pickle(output)
    assert list(one.tok_model_output) == list(two.tok_model_output)
    logged = pd.read_pickle(accuracy_run[0] / "results.pkl").head(24)
    assert list(logged.sample_index) == list(range(24))
    same = sum(a == b for a, b in zip(logged.model_output, one.model_output, strict=True))
    assert same >= 20  # bfloat16 there, float32 here


@pytest.mark.parametrize(("model", "dtype"), [("model", "float32"), ("model-fp8", "bfloat16")])
def test_every_precision_keeps_the_score(
    model: str, dtype: str, accuracy_run, tmp_path: Path
) -> None:
    output = tmp_path / "answers.pkl"
    options = ["--model", str(TINY / model), "--dtype", dtype, "--output-file", str(output)]
    answered = call(sys.executable, "run_eval.py", "--backend", "pytorch", *DATA, *options)
    assert answered.returncode == 0, answered.stderr
    problems = ["--livecodebench-file", str(TINY / "livecodebench.jsonl")]
    graded = call(sys.executable, "eval_accuracy.py", "--input-file", str(output), *problems)
    assert graded.returncode == 0, graded.stderr
    assert abs(figures(graded.stdout)[0] - figures(accuracy_run[1])[0]) <= 2.0


@pytest.mark.parametrize("mode", ["offline", "server", "interactive"])
def test_performance_run_in_each_mode(mode: str, tmp_path: Path) -> None:
    short = ["--target-qps", "4", "--min-duration", "2000", "--min-query-count", "8"]
    options = ["--mode", mode, "--output-dir", str(tmp_path), "--num-samples", "16"]
    ended = call(*TORCHRUN, "run_mlperf_mpi.py", *options, *short, *DATA, *MODEL)
    assert ended.returncode == 0, ended.stderr
    folder = tmp_path / mode / "performance"
    record = json.loads((folder / "run.json").read_text())
    assert record["submittable"] is False
    assert record["figures"]["tokens_per_second"] > 0
    assert ("ttft_p99_ms" in record["figures"]) == (mode != "offline")
    results = pd.read_pickle(folder / "results.pkl")
    assert len(results) >= 8
    assert results.query_id.is_unique
    assert (folder / "results.parquet").exists()


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


@pytest.mark.parametrize(
    ("changes", "code", "said"),
    [
        ({"--input-file": "nosuch.pkl"}, 3, "nosuch.pkl"),
        ({"--model": str(ROOT / "tests")}, 6, "config.json"),
        ({"--model": "nosuch/model"}, 6, "nosuch/model"),
        ({"--backend": "nosuch"}, 2, "pytorch"),
        ({"--max-model-len": "40"}, 8, "40"),
        ({"--output-dir": "/proc/nosuch"}, 11, "/proc/nosuch"),
    ],
)
def test_bad_input_ends_in_one_line(changes: dict[str, str], code: int, said: str) -> None:
    options = {
        "--backend": "pytorch",
        "--input-file": DATA[1],
        "--model": MODEL[1],
        "--output-dir": "/proc/nosuch" if "--output-dir" in changes else "mlperf_results/bad",
        **changes,
    }
    words = [word for pair in options.items() for word in pair]
    ended = call(sys.executable, "run_mlperf.py", *words)
    assert ended.returncode == code, ended.stderr
    lines = [line for line in ended.stderr.splitlines() if not re.match(r"\d\d:\d\d:\d\d ", line)]
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert said in lines[0]


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
