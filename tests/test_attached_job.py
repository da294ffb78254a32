"""Complete runs on existing servers: two echo servers in processes of their own."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest

from data.journal import read_journal

ROOT = Path(__file__).parent.parent
SERVER = ROOT / "tests" / "backends" / "echo_server.py"

Servers = dict[str, subprocess.Popen[str]]


@pytest.fixture
def servers() -> Iterator[Servers]:
    """Two servers, by URL."""
    started = {}
    for _ in range(2):
        process = subprocess.Popen(
            [sys.executable, str(SERVER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout
        started[f"http://127.0.0.1:{process.stdout.readline().strip()}"] = process
    yield started
    for process in started.values():
        process.kill()
        process.communicate()


def start(
    script: str, model: Path, data: Path, servers: Servers, *options: object
) -> subprocess.Popen[str]:
    words = ["--backend", "vllm", "--model", model, "--input-file", data, "--served-model", "echo"]
    words += ["--endpoint", ",".join(servers), "--output-dir", data.parent, *options]
    return subprocess.Popen(
        [sys.executable, ROOT / script, *map(str, words)],
        cwd=data.parent,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_servers_answer_as_one(
    servers: Servers, echo_model: Path, data_set: Callable[[int], Path]
) -> None:
    path = data_set(24)
    run = start("run_eval.py", echo_model, path, servers, "--max-new-tokens", 50, "--async")
    _, stderr = run.communicate(timeout=60)
    assert run.returncode == 0, stderr
    frame = pd.read_pickle(path.parent / "vllm_output.pkl")
    assert len(frame) == 24
    assert set(frame.tok_model_output_len) == {50}
    assert set(frame.model_backend) == {"vllm"}


@pytest.mark.slow
def test_a_server_that_is_killed_ends_the_run_and_is_named(
    servers: Servers, echo_model: Path, data_set: Callable[[int], Path]
) -> None:
    path = data_set(60)
    options = ("--mode", "server", "--target-qps", 20, "--num-samples", 60)
    run = start("run_mlperf.py", echo_model, path, servers, *options)
    journal = path.parent / "server" / "performance" / "completions.journal"
    until = time.monotonic() + 60
    while not (journal.exists() and journal.stat().st_size):
        assert run.poll() is None
        assert time.monotonic() < until
        time.sleep(0.05)
    url, process = next(iter(servers.items()))
    process.kill()
    _, stderr = run.communicate(timeout=15)
    assert run.returncode == 12
    last = stderr.splitlines()[-1]
    assert last.startswith(f"error: endpoint {url}: row ")
    assert "Traceback" not in stderr
    assert read_journal(journal)
