"""The main job on real vLLM and SGLang: PyTorch's answers, LoadGen's logs, mistakes, and ends."""

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.jobs import (
    END_S,
    GIVEN,
    LOG_ALL,
    assert_gone,
    call,
    check_logs,
    differing_rows,
    journal,
    orphans,
    sglang_scheduler,
    start_answering,
    without_mtp,
)

pytestmark = [pytest.mark.slow, pytest.mark.engine, pytest.mark.timeout(1200)]

VLLM = pytest.param("vllm", marks=pytest.mark.vllm)
SGLANG = pytest.param("sglang", marks=pytest.mark.sglang)
ON_BOTH = pytest.mark.parametrize("engine", [VLLM, SGLANG])
OPTIONS = {"vllm": ["--eager"], "sglang": []}  # that make it start soon
QPS = {"vllm": 8, "sglang": 2}  # that two cores can bear
# With vLLM its core, its worker and the keeper; with SGLang server, scheduler, detokenizer, keeper.
PROCESSES = {"vllm": 3, "sglang": 4}
OPTION = {"vllm": "max_num_seqs", "sglang": "max_total_tokens"}  # of the engine's own


def run_mlperf(engine: str, *words: str) -> subprocess.CompletedProcess[str]:
    return call("run_mlperf.py", "--backend", engine, *GIVEN, *words)


@ON_BOTH
def test_greedy_answers_are_those_of_the_pytorch_engine(engine: str, tmp_path: Path) -> None:
    assert differing_rows(tmp_path, engine, *OPTIONS[engine]) == []


@ON_BOTH
def test_the_logs_hold_to_test06(engine: str, tmp_path: Path) -> None:
    conf = tmp_path / "user.conf"
    conf.write_text(LOG_ALL)
    ended = run_mlperf(
        *(engine, *OPTIONS[engine], "--mode", "server", "--target-qps", str(QPS[engine])),
        *("--num-samples", "20", "--user-conf", str(conf), "--output-dir", str(tmp_path)),
    )
    assert ended.returncode == 0, ended.stderr
    assert check_logs(tmp_path / "server" / "performance", [1]) >= 20


@pytest.fixture
def answering(tmp_path: Path) -> Callable[[str], tuple[subprocess.Popen, list[psutil.Process]]]:
    return lambda engine: start_answering(tmp_path, "--backend", engine, *OPTIONS[engine])


@ON_BOTH
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_nothing_outlives_a_run_that_is_ended(
    engine: str, how: signal.Signals, answering, tmp_path: Path
) -> None:
    before = orphans()
    run, processes = answering(engine)
    assert len(processes) >= PROCESSES[engine]
    run.send_signal(how)
    _, said = run.communicate(timeout=END_S + 5)
    assert run.returncode != 0
    assert_gone(processes, before)
    if how == signal.SIGINT:
        assert run.returncode == 130
        assert said.splitlines()[-1] == "interrupted: finished samples are on disk"
    first = json.loads(journal(tmp_path).read_text().splitlines()[0])
    assert first["token_ids"]


def vllm_core(processes: list[psutil.Process]) -> psutil.Process:
    return next(one for one in processes if "EngineCore" in one.name())


def sglang_server(processes: list[psutil.Process]) -> psutil.Process:
    return next(one for one in processes if "sglang.launch_server" in one.cmdline())


@pytest.mark.parametrize(
    ("engine", "victim", "told"),
    [
        pytest.param("vllm", vllm_core, "vLLM's engine has died", marks=pytest.mark.vllm),
        *(
            pytest.param("sglang", victim, "SGLang has died (exit code -9)", marks=mark)
            for victim, mark in (
                (sglang_server, pytest.mark.sglang),
                (sglang_scheduler, pytest.mark.sglang),
            )
        ),
    ],
)
def test_an_engine_that_is_killed_ends_the_run_in_words(
    engine: str, victim: Callable, told: str, answering, tmp_path: Path
) -> None:
    before = orphans()
    run, processes = answering(engine)
    os.kill(victim(processes).pid, signal.SIGKILL)
    _, said = run.communicate(timeout=END_S + 5)
    assert run.returncode == 12
    assert f"error: {told}" in said
    assert str(tmp_path / "offline" / "accuracy" / "engine.log") in said
    assert "Traceback" not in said.split("ends with:")[0]
    assert_gone(processes, before)
    assert journal(tmp_path).read_text()


@ON_BOTH
@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--model", "/none"], 6, "/none: no such model directory"),
        (["--engine-arg", "{option}x=3"], 2, "did you mean {option}"),
        (["--device", "cuda"], 2, "./setup.sh --backend {engine} --device cuda"),
        (["--speculative"], 2, "interactive only"),
        (["--endpoint", "http://127.0.0.1:9"], 12, "http://127.0.0.1:9"),
        (["--endpoint", "somewhere"], 2, "somewhere"),
        (["--endpoint", "http://a", "--eager"], 2, "--eager: with --endpoint"),
    ],
)
def test_a_mistake_is_one_line(
    engine: str, options: list[str], code: int, said: str, tmp_path: Path
) -> None:
    words = [word.format(option=OPTION[engine]) for word in options]
    ended = run_mlperf(engine, *words, "--output-dir", str(tmp_path), "--num-samples", "4")
    assert ended.returncode == code, ended.stderr
    expected = said.format(engine=engine, option=OPTION[engine])
    assert expected in ended.stderr.splitlines()[-1]
    assert ended.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in ended.stderr


@ON_BOTH
def test_a_model_without_mtp_layer_is_refused(engine: str, tmp_path: Path) -> None:
    ended = run_mlperf(
        *(engine, "--model", str(without_mtp(tmp_path)), "--output-dir", str(tmp_path)),
        *("--mode", "interactive", "--speculative"),
    )
    assert ended.returncode == 6, ended.stderr
    assert ended.stderr.splitlines()[-1].endswith("this model has no MTP layer for --speculative")
