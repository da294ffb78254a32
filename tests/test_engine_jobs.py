"""The main job on real vLLM and SGLang: user errors, interrupts, and engines that die."""

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import psutil
import pytest

from data.journal import read_journal
from data.samples import read_frame
from tests import forked
from tests.jobs import (
    END_S,
    GIVEN,
    TINY,
    accuracy_run,
    assert_gone,
    journal,
    shared_by,
    start_answering,
    vllm_core,
)

pytestmark = [pytest.mark.slow, pytest.mark.engine, pytest.mark.timeout(1200)]

VLLM = pytest.param("vllm", marks=pytest.mark.vllm)
SGLANG = pytest.param("sglang", marks=pytest.mark.sglang)
ON_BOTH = pytest.mark.parametrize("engine", [VLLM, SGLANG])
OPTIONS = {"vllm": ["--eager"], "sglang": []}  # that make it start soon
# With vLLM its core, its worker and the keeper; with SGLang server, scheduler, detokenizer, keeper.
PROCESSES = {"vllm": 3, "sglang": 4}
ROWS = 24  # of a run that is resumed
DEATH = {"vllm": "vLLM's engine has died", "sglang": "SGLang has died (exit code -9)"}
OPTION = {"vllm": "max_num_seqs", "sglang": "max_total_tokens"}  # of the engine's own

Fault = Callable[[subprocess.Popen[str], list[psutil.Process]], None]


def interrupt(run: subprocess.Popen[str], _: list[psutil.Process]) -> None:
    run.send_signal(signal.SIGINT)


def kill(run: subprocess.Popen[str], _: list[psutil.Process]) -> None:
    run.kill()


def kill_engine(_: subprocess.Popen[str], processes: list[psutil.Process]) -> None:
    engine = [one for one in processes if "sglang.launch_server" in one.cmdline()]
    (engine[0] if engine else vllm_core(processes)).kill()


FAULTS: tuple[tuple[Fault, int], ...] = ((interrupt, 130), (kill, -9), (kill_engine, 12))


def questions_twice(folder: Path) -> Path:
    """A data set whose second half is its first half."""
    half = read_frame(TINY / "final_output.pkl").head(ROWS // 2)
    path = folder / "twice.parquet"
    pd.concat([half, half], ignore_index=True).to_parquet(path)
    return path


@ON_BOTH
def test_runs_that_end_in_every_way_leave_nothing_but_their_answers(
    engine: str, tmp_path: Path
) -> None:
    """Each question is there twice: before and after a failure it has the same answer."""
    data = ("--input-file", str(questions_twice(tmp_path)))
    options = (*data, "--backend", engine, *OPTIONS[engine])
    kept: list[int] = []
    errors = ""
    for fault, code in FAULTS:
        resume = ["--resume"] if kept else []
        run, processes = start_answering(tmp_path, *options, *resume, answers=len(kept) + 1)
        assert len(processes) >= PROCESSES[engine]
        shared = shared_by(processes)
        assert shared
        fault(run, processes)
        _, stderr = run.communicate(timeout=END_S + 5)
        assert run.returncode == code, stderr
        assert_gone(processes, shared)
        rows = [index for index, _ in read_journal(journal(tmp_path))]
        assert len(kept) < len(rows) < ROWS
        assert rows[: len(kept)] == kept
        kept, errors = rows, errors + stderr
    assert "interrupted: what is finished is on disk\n" in errors
    assert f"error: {DEATH[engine]}" in errors
    assert str(journal(tmp_path).with_name("engine.log")) in errors
    assert "Traceback" not in errors.split("ends with:")[0]

    assert any((row + ROWS // 2) % ROWS not in kept for row in kept)
    ended = forked.run(*accuracy_run(tmp_path), *options, "--resume", timeout=600)
    assert ended.returncode == 0, ended.stderr
    results = journal(tmp_path).parent
    frame = pd.read_parquet(results / "results_evaluated.parquet").drop(columns="query_id")
    assert list(frame.pop("sample_index")) == list(range(ROWS))
    first, second = frame[: ROWS // 2], frame[ROWS // 2 :].reset_index(drop=True)
    pd.testing.assert_frame_equal(first, second)
    answers = [index for index, _ in read_journal(journal(tmp_path))]
    assert answers[: len(kept)] == kept
    assert sorted(answers) == list(range(ROWS))
    entries = json.loads((results / "mlperf_log_accuracy.json").read_text())
    logged = {entry["qsl_idx"]: entry["data"] for entry in entries}
    assert sorted(logged) == list(range(ROWS))
    assert all(logged[row] == logged[row - ROWS // 2] for row in range(ROWS // 2, ROWS))


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
    ended = forked.run(
        *("run_mlperf.py", "--backend", engine, *GIVEN, *words),
        *("--output-dir", tmp_path, "--num-samples", "4"),
        timeout=300,
    )
    assert ended.returncode == code, ended.stderr
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert message.format(option=OPTION[engine], engine=engine) in last
    assert "Traceback" not in ended.stderr
