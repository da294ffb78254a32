"""The main job on real vLLM and SGLang: user errors, interrupts, and engines that die."""

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from data.journal import read_journal
from tests.jobs import (
    END_S,
    GIVEN,
    accuracy_run,
    assert_gone,
    call,
    journal,
    orphans,
    start_answering,
    vllm_core,
)
from tests.mlperf.test_run import assert_same_results

pytestmark = [pytest.mark.slow, pytest.mark.engine, pytest.mark.timeout(1200)]

VLLM = pytest.param("vllm", marks=pytest.mark.vllm)
SGLANG = pytest.param("sglang", marks=pytest.mark.sglang)
ON_BOTH = pytest.mark.parametrize("engine", [VLLM, SGLANG])
OPTIONS = {"vllm": ["--eager"], "sglang": []}  # that make it start soon
# With vLLM its core, its worker and the keeper; with SGLang server, scheduler, detokenizer, keeper.
PROCESSES = {"vllm": 3, "sglang": 4}
ROWS = 24  # of a run that is resumed
OPTION = {"vllm": "max_num_seqs", "sglang": "max_total_tokens"}  # of the engine's own


Answering = Callable[[str], tuple[subprocess.Popen, list[psutil.Process]]]


@pytest.fixture
def answering(tmp_path: Path) -> Answering:
    return lambda engine: start_answering(tmp_path, "--backend", engine, *OPTIONS[engine])


@ON_BOTH
def test_nothing_outlives_an_interrupted_run(
    engine: str, answering: Answering, tmp_path: Path
) -> None:
    before = orphans()
    run, processes = answering(engine)
    assert len(processes) >= PROCESSES[engine]
    run.send_signal(signal.SIGINT)
    _, stderr = run.communicate(timeout=END_S + 5)
    assert_gone(processes, before)
    assert run.returncode == 130
    assert stderr.splitlines()[-1] == "interrupted: what is finished is on disk"
    assert read_journal(journal(tmp_path))


@ON_BOTH
def test_nothing_outlives_a_killed_run_which_resumed_comes_to_the_same_results(
    engine: str, tmp_path: Path
) -> None:
    options = ("--backend", engine, *OPTIONS[engine], "--num-samples", str(ROWS))
    before = orphans()
    run, processes = start_answering(tmp_path / "killed", *options)
    assert len(processes) >= PROCESSES[engine]
    run.kill()
    run.communicate(timeout=END_S + 5)
    assert_gone(processes, before)
    kept = read_journal(journal(tmp_path / "killed"))
    assert 0 < len(kept) < ROWS
    for folder, resume in (("killed", ["--resume"]), ("whole", [])):
        ended = call(*accuracy_run(tmp_path / folder), *options, *resume)
        assert ended.returncode == 0, ended.stderr
    answers = read_journal(journal(tmp_path / "killed"))
    assert [index for index, _ in answers[: len(kept)]] == [index for index, _ in kept]
    assert_same_results(journal(tmp_path / "killed").parent, journal(tmp_path / "whole").parent)


def sglang_server(processes: list[psutil.Process]) -> psutil.Process:
    return next(one for one in processes if "sglang.launch_server" in one.cmdline())


@pytest.mark.parametrize(
    ("engine", "victim", "message"),
    [
        pytest.param("vllm", vllm_core, "vLLM's engine has died", marks=pytest.mark.vllm),
        pytest.param(
            *("sglang", sglang_server, "SGLang has died (exit code -9)"), marks=pytest.mark.sglang
        ),
    ],
)
def test_an_engine_that_is_killed_ends_the_run_with_a_message(
    engine: str, victim: Callable, message: str, answering: Answering, tmp_path: Path
) -> None:
    before = orphans()
    run, processes = answering(engine)
    os.kill(victim(processes).pid, signal.SIGKILL)
    _, stderr = run.communicate(timeout=END_S + 5)
    assert run.returncode == 12
    assert f"error: {message}" in stderr
    assert str(tmp_path / "offline" / "accuracy" / "engine.log") in stderr
    assert "Traceback" not in stderr.split("ends with:")[0]
    assert_gone(processes, before)
    assert read_journal(journal(tmp_path))


@ON_BOTH
@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--engine-arg", "{option}x=3"], 2, "did you mean {option}"),
        (["--device", "cuda"], 2, "./setup.sh --backend {engine} --device cuda"),
        (["--endpoint", "http://127.0.0.1:9"], 12, "http://127.0.0.1:9"),
        (["--endpoint", "somewhere"], 2, "somewhere"),
    ],
)
def test_a_mistake_is_one_line(
    engine: str, options: list[str], code: int, message: str, tmp_path: Path
) -> None:
    words = [word.format(option=OPTION[engine]) for word in options]
    ended = call(
        *("run_mlperf.py", "--backend", engine, *GIVEN, *words),
        *("--output-dir", str(tmp_path), "--num-samples", "4"),
    )
    assert ended.returncode == code, ended.stderr
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert message.format(option=OPTION[engine], engine=engine) in last
    assert "Traceback" not in ended.stderr
