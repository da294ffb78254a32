"""Runs by torchrun that fail in every way, and accuracy runs that go on after them."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from data.journal import read_journal
from mlperf.run import JOURNAL
from tests.jobs import GIVEN, ROOT
from tests.mlperf.test_run import assert_same_results

ROWS = 24
START_S = 240
END_S = 60  # from a fault to the end, on a busy machine

pytestmark = [pytest.mark.slow, pytest.mark.engine, pytest.mark.timeout(1200)]

Agent = subprocess.Popen[bytes]


class Job:
    """An accuracy run of two ranks, which is started again and again."""

    def __init__(self, folder: Path) -> None:
        self.results = folder / "offline" / "accuracy"
        self._folder = folder

    def start(self, *options: str, fault: str = "none") -> Agent:
        torchrun = ("-m", "torch.distributed.run", "--nproc_per_node=2")
        words = ("tests/mlperf/faulty_ranks.py", "--accuracy", *GIVEN, "--num-samples", str(ROWS))
        sizes = ("--max-running", "4", "--device", "cpu", "--output-dir", str(self._folder))
        return subprocess.Popen(
            [sys.executable, *torchrun, *words, *sizes, *options],
            cwd=ROOT,
            env={**os.environ, "FAULT": fault},
            stderr=subprocess.DEVNULL,
        )

    def finish(self, *options: str) -> None:
        assert self.start(*options).wait(START_S) == 0
        assert self.state["state"] == "done"

    def end(self, agent: Agent) -> list[int]:
        """Wait until a run that fails has ended; returns the rows that have been answered."""
        assert agent.wait(START_S) != 0
        rows = [index for index, _ in read_journal(self.results / JOURNAL)]
        assert len(rows) == len(set(rows))
        return rows

    def wait_for(self, answers: int) -> None:
        """Until the journal has so many answers."""
        journal, until = self.results / JOURNAL, time.monotonic() + START_S
        while not (journal.exists() and len(read_journal(journal)) >= answers):
            assert time.monotonic() < until
            time.sleep(0.1)

    @property
    def state(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads((self.results / "state.json").read_text())
        return value


def ranks(agent: Agent) -> list[psutil.Process]:
    """The processes of rank 0 and of rank 1."""
    children = psutil.Process(agent.pid).children()
    return sorted(children, key=lambda one: one.environ()["RANK"])


def kill_rank(number: int) -> Callable[[Agent], None]:
    return lambda agent: ranks(agent)[number].kill()


def kill_all(agent: Agent) -> None:
    for one in [psutil.Process(agent.pid), *ranks(agent)]:
        one.kill()


def test_a_run_that_fails_again_and_again_comes_to_the_same_results(tmp_path: Path) -> None:
    whole, job = Job(tmp_path / "whole"), Job(tmp_path / "job")
    whole.finish()

    kept = job.end(job.start(fault="full disk 0"))
    assert "completions.journal: can't be written: File too large" in job.state["error"]
    moments = random.Random(0)
    for fault, reasons in (
        ("exception 1", ("rank 1 of 2 (process ", "terminated")),  # by torchrun, if that is faster
        ("exception 0", ("internal error: RuntimeError: the engine stopped",)),
        (kill_rank(1), ("rank 1 of 2 (process ",)),
        (kill_rank(0), ()),
        (kill_all, ()),
    ):
        assert 0 < len(kept) < ROWS
        if isinstance(fault, str):
            agent = job.start("--resume", fault=fault)
        else:
            agent = job.start("--resume")
            job.wait_for(len(kept) + 1)
            time.sleep(moments.uniform(0, 0.3))
            fault(agent)
        rows = job.end(agent)
        assert rows[: len(kept)] == kept
        state = job.state
        assert len(rows) >= state["finished"]
        assert state["state"] == ("failed" if reasons else "running")
        assert not reasons or state["error"].startswith(reasons)
        kept = rows
    job.finish("--resume")
    assert_same_results(job.results, whole.results)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_all_ranks_in_words(how: signal.Signals, tmp_path: Path) -> None:
    job = Job(tmp_path)
    agent = job.start()
    job.wait_for(1)
    processes = ranks(agent)
    agent.send_signal(how)
    assert len(job.end(agent)) >= job.state["finished"] > 0
    assert not psutil.wait_procs(processes, END_S)[1]
    assert job.state["state"] == "failed"
    assert job.state["error"] in ("terminated", "interrupted")
