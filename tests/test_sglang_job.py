"""The main job on a real SGLang server: the README's commands, PyTorch's answers, and its ends."""

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
    sglang_scheduler,
    shared_memory,
    start_answering,
    without_mtp,
)

SCENARIOS = ("offline", "server", "interactive")
SHARED = ("sglang_loads_", "sgl_shm_")

pytestmark = [
    pytest.mark.sglang,
    pytest.mark.slow,
    pytest.mark.engine,
    pytest.mark.timeout(1200),
]


@pytest.fixture(scope="module")
def clone(readme) -> Path:
    """The folder in which the README's commands have been run."""
    readme.run("sglang")
    return readme.copy


def test_the_score_is_the_one_beside_the_weights(clone: Path) -> None:
    kept = json.loads((TINY / "scores.json").read_text(encoding="utf-8"))["exact_match"]
    for evaluated in (
        clone / "data" / "sglang_output_evaluated.pkl",
        clone / "mlperf_results" / "sglang" / "offline" / "accuracy" / "results_evaluated.pkl",
    ):
        frame = pd.read_pickle(evaluated)
        assert len(frame) == 240
        assert abs(frame.prompt_accuracy.mean() - kept) <= 1.5


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_performance_run_in_each_mode(scenario: str, clone: Path) -> None:
    left = clone / "mlperf_results" / "sglang" / scenario / "performance"
    record = json.loads((left / "run.json").read_text())
    assert record["figures"]["tokens_per_second"] > 0
    assert ("ttft_p99_ms" in record["figures"]) == ("offline" not in scenario)
    results = pd.read_pickle(left / "results.pkl")
    assert len(results) >= 40
    assert list(results.tok_model_output.map(len)) == list(results.tok_model_output_len)
    told = json.loads((left / "engine.json").read_text())
    assert told["server"]["disable_radix_cache"] is True
    assert "fired up" in (left / "engine.log").read_text()


def test_greedy_answers_are_those_of_the_pytorch_engine(tmp_path: Path) -> None:
    assert differing_rows(tmp_path, "sglang") == []


def test_the_logs_hold_to_test06(tmp_path: Path) -> None:
    conf = tmp_path / "user.conf"
    conf.write_text(LOG_ALL)
    ended = call(
        *("run_mlperf.py", "--backend", "sglang", *GIVEN, "--mode", "server"),
        *("--target-qps", "4", "--num-samples", "20", "--user-conf", str(conf)),
        *("--output-dir", str(tmp_path)),
    )
    assert ended.returncode == 0, ended.stderr
    assert check_logs(tmp_path / "server" / "performance", [1]) >= 20


@pytest.fixture
def answering(tmp_path: Path) -> Callable[[], tuple[subprocess.Popen[str], list[psutil.Process]]]:
    return lambda: start_answering(tmp_path, "--backend", "sglang")


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_outlives_a_run_that_is_ended(how: signal.Signals, answering, tmp_path) -> None:
    memory = shared_memory(*SHARED)
    run, engine = answering()
    assert len(engine) >= 4  # the server, its scheduler and detokenizer, the keeper
    run.send_signal(how)
    _, said = run.communicate(timeout=END_S + 5)
    assert run.returncode != 0
    assert_gone(engine, memory, *SHARED)
    if how == signal.SIGINT:
        assert run.returncode == 130
        assert said.splitlines()[-1] == "interrupted: finished samples are on disk"
    first = json.loads(journal(tmp_path).read_text().splitlines()[0])
    assert first["token_ids"]


@pytest.mark.parametrize("victim", ["server", "scheduler"])
def test_a_server_that_is_killed_ends_the_run_in_words(
    victim: str, answering, tmp_path: Path
) -> None:
    memory = shared_memory(*SHARED)
    run, engine = answering()
    server = next(one for one in engine if "sglang.launch_server" in one.cmdline())
    killed = server if victim == "server" else sglang_scheduler(server.children())
    os.kill(killed.pid, signal.SIGKILL)
    _, said = run.communicate(timeout=END_S + 5)
    assert run.returncode == 12
    assert "error: SGLang has died (exit code -9)" in said
    assert str(tmp_path / "offline" / "accuracy" / "engine.log") in said
    assert "Traceback" not in said.split("ends with:")[0]
    assert_gone(engine, memory, *SHARED)
    assert journal(tmp_path).read_text()


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--model", "/none"], 6, "/none: no such model directory"),
        (["--engine-arg", "max_total_token=3"], 2, "did you mean max_total_tokens"),
        (["--device", "cuda"], 2, "./setup.sh --backend sglang --device cuda"),
        (["--speculative"], 2, "interactive only"),
        (["--endpoint", "http://127.0.0.1:9"], 12, "http://127.0.0.1:9"),
        (["--endpoint", "somewhere"], 2, "somewhere"),
        (["--endpoint", "http://a", "--attention-dp", "2"], 2, "--attention-dp: with --endpoint"),
    ],
)
def test_a_mistake_is_one_line(options: list[str], code: int, said: str, tmp_path: Path) -> None:
    ended = call(
        *("run_mlperf.py", "--backend", "sglang", *GIVEN, *options),
        *("--output-dir", str(tmp_path), "--num-samples", "4"),
    )
    assert ended.returncode == code, ended.stderr
    assert said in ended.stderr.splitlines()[-1]
    assert ended.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in ended.stderr


def test_a_model_without_mtp_layer_is_refused(tmp_path: Path) -> None:
    ended = call(
        *("run_mlperf.py", "--backend", "sglang", *GIVEN, "--model", str(without_mtp(tmp_path))),
        *("--mode", "interactive", "--speculative", "--output-dir", str(tmp_path)),
    )
    assert ended.returncode == 6, ended.stderr
    assert ended.stderr.splitlines()[-1].endswith("this model has no MTP layer for --speculative")
