"""The main job on real vLLM: the README's commands, the same answers as PyTorch's, and its ends."""

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import psutil
import pytest

from tests.jobs import (
    END_S,
    GIVEN,
    LOG_ALL,
    TINY,
    assert_gone,
    call,
    check_logs,
    differing_rows,
    journal,
    shared_memory,
    start_answering,
    without_mtp,
)

SCENARIOS = ("offline", "server", "interactive")

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.engine,
    pytest.mark.timeout(1200),
]


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
    assert differing_rows(tmp_path, "vllm", "--eager") == []


def test_the_logs_hold_to_test06(tmp_path: Path) -> None:
    conf = tmp_path / "user.conf"
    conf.write_text(LOG_ALL)
    ended = call(
        *("run_mlperf.py", "--backend", "vllm", "--eager", *GIVEN, "--mode", "server"),
        *("--target-qps", "8", "--num-samples", "20", "--user-conf", str(conf)),
        *("--output-dir", str(tmp_path)),
    )
    assert ended.returncode == 0, ended.stderr
    assert check_logs(tmp_path / "server" / "performance", [1]) >= 20


@pytest.fixture
def answering(tmp_path: Path) -> Callable[[], tuple[subprocess.Popen[str], list[psutil.Process]]]:
    return lambda: start_answering(tmp_path, "--backend", "vllm", "--eager")


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


def test_a_model_without_mtp_layer_is_refused(tmp_path: Path) -> None:
    ended = call(
        *("run_mlperf.py", "--backend", "vllm", *GIVEN, "--model", str(without_mtp(tmp_path))),
        *("--mode", "interactive", "--speculative", "--output-dir", str(tmp_path)),
    )
    assert ended.returncode == 6, ended.stderr
    assert ended.stderr.splitlines()[-1].endswith("this model has no MTP layer for --speculative")
