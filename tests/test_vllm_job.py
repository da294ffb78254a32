"""The main job on real vLLM: the README's commands, the same answers as PyTorch's, and its ends."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import psutil
import pytest

ROOT = Path(__file__).parent.parent
TINY = ROOT / "data" / "tiny"
GIVEN = ["--model", str(TINY / "model"), "--input-file", str(TINY / "final_output.pkl")]
SCENARIOS = ("offline", "server", "interactive")
END_S = 15.0  # for everything to be gone

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.engine,
    pytest.mark.timeout(1200),
]


def call(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def clone(readme) -> Path:
    """The folder in which the README's commands have been run."""
    readme.run("vllm")
    return readme.copy


def test_the_score_is_the_one_beside_the_weights(clone: Path) -> None:
    kept = json.loads((TINY / "scores.json").read_text(encoding="utf-8"))["exact_match"]
    for evaluated in (
        clone / "data" / "vllm_output_evaluated.pkl",
        clone / "mlperf_results" / "offline" / "accuracy" / "results_evaluated.pkl",
    ):
        frame = pd.read_pickle(evaluated)
        assert len(frame) == 240
        assert abs(frame.prompt_accuracy.mean() - kept) <= 1.5


@pytest.mark.parametrize("scenario", [*SCENARIOS, "attached/server"])
def test_performance_run_in_each_mode(scenario: str, clone: Path) -> None:
    left = clone / "mlperf_results" / scenario / "performance"
    record = json.loads((left / "run.json").read_text())
    assert record["figures"]["tokens_per_second"] > 0
    assert ("ttft_p99_ms" in record["figures"]) == ("offline" not in scenario)
    results = pd.read_pickle(left / "results.pkl")
    assert len(results) >= 40
    assert list(results.tok_model_output.map(len)) == list(results.tok_model_output_len)
    told = json.loads((left / "engine.json").read_text())
    if scenario in SCENARIOS:
        assert told["arguments"]["enforce_eager"] is True
        assert "KV cache size" in (left / "engine.log").read_text()


def test_greedy_answers_are_those_of_the_pytorch_engine(tmp_path: Path) -> None:
    frames = {}
    for engine, options in (("pytorch", []), ("vllm", ["--eager"])):
        output = tmp_path / f"{engine}.pkl"
        words = ["run_eval.py", "--backend", engine, *GIVEN, "--dtype", "float32", *options]
        ended = call(*words, "--output-file", str(output))
        assert ended.returncode == 0, ended.stderr
        frames[engine] = pd.read_pickle(output)
    ours, theirs = frames["pytorch"], frames["vllm"]
    assert list(ours.columns) == list(theirs.columns)
    assert len(ours) == len(theirs) == 240
    differ = [
        row
        for row, (one, other) in enumerate(
            zip(ours.tok_model_output, theirs.tok_model_output, strict=True)
        )
        if list(one) != list(other)
    ]
    assert not differ, f"rows {differ} differ"
    assert list(ours.finish) == list(theirs.finish)


@pytest.fixture
def answering(tmp_path: Path) -> Callable[[], tuple[subprocess.Popen[str], list[psutil.Process]]]:
    """Starts a run, and returns it with its descendants once it has answers on disk."""

    def start() -> tuple[subprocess.Popen[str], list[psutil.Process]]:
        options = ["--backend", "vllm", "--eager", "--max-running", "2", "--accuracy"]
        run = subprocess.Popen(
            [sys.executable, "run_mlperf.py", *options, *GIVEN, "--output-dir", str(tmp_path)],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        path = journal(tmp_path)
        until = time.monotonic() + 120
        while not (path.exists() and path.stat().st_size):
            assert run.poll() is None
            assert time.monotonic() < until
            time.sleep(0.1)
        return run, psutil.Process(run.pid).children(recursive=True)

    return start


def journal(folder: Path) -> Path:
    return folder / "offline" / "accuracy" / "completions.journal.jsonl"


def shared_memory() -> set[str]:
    """Of multiprocessing's: segments and semaphores."""
    return {path.name for path in Path("/dev/shm").iterdir() if path.name[:4] in ("psm_", "sem.")}


def assert_gone(processes: list[psutil.Process], memory: set[str]) -> None:
    until = time.monotonic() + END_S
    alive = processes
    while alive and time.monotonic() < until:
        time.sleep(0.2)
        # nobody may be there to collect a process whose parent was killed
        alive = [one for one in alive if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    assert not alive
    assert shared_memory() <= memory


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_outlives_a_run_that_is_ended(how: signal.Signals, answering, tmp_path) -> None:
    memory = shared_memory()
    run, engine = answering()
    assert len(engine) >= 3  # the engine's core, its worker, the keeper
    run.send_signal(how)
    _, said = run.communicate(timeout=END_S + 5)
    assert run.returncode != 0
    assert_gone(engine, memory)
    if how == signal.SIGINT:
        assert run.returncode == 130
        assert said.splitlines()[-1] == "interrupted: finished samples are on disk"
    first = json.loads(journal(tmp_path).read_text().splitlines()[0])
    assert first["token_ids"]


def test_an_engine_that_is_killed_ends_the_run_in_words(answering, tmp_path: Path) -> None:
    memory = shared_memory()
    run, engine = answering()
    core = next(one for one in engine if "EngineCore" in one.name())
    os.kill(core.pid, signal.SIGKILL)
    _, said = run.communicate(timeout=END_S + 5)
    assert run.returncode == 12
    assert "error: vLLM's engine has died" in said
    assert str(tmp_path / "offline" / "accuracy" / "engine.log") in said
    assert "Traceback" not in said.split("ends with:")[0]
    assert_gone(engine, memory)
    assert journal(tmp_path).read_text()


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--model", "/none"], 6, "/none: no such model directory"),
        (["--engine-arg", "max_num_seq=3"], 2, "did you mean max_num_seqs"),
        (["--device", "cuda"], 2, "./setup.sh --backend vllm --device cuda"),
        (["--speculative"], 2, "interactive only"),
        (["--mode", "interactive", "--speculative"], 6, "no MTP layer"),
        (["--endpoint", "http://127.0.0.1:9"], 12, "http://127.0.0.1:9"),
        (["--endpoint", "somewhere"], 2, "somewhere"),
    ],
)
def test_a_mistake_is_one_line(options: list[str], code: int, said: str, tmp_path: Path) -> None:
    ended = call(
        *("run_mlperf.py", "--backend", "vllm", *GIVEN, *options),
        *("--output-dir", str(tmp_path), "--num-samples", "4"),
    )
    assert ended.returncode == code, ended.stderr
    assert said in ended.stderr.splitlines()[-1]
    assert ended.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in ended.stderr
