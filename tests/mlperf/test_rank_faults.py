"""Runs by torchrun that fail in every way, and accuracy runs that go on after them."""

import json
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from data.journal import read_journal
from mlperf.run import JOURNAL
from tests.jobs import GIVEN
from tests.mlperf.test_run import assert_same_results
from tests.torchrun import Torchrun

ROWS = 20
START_S = 240
END_S = 60  # from a fault to the end, on a busy machine
WORKER = Path(__file__).with_name("faulty_rank.py")

pytestmark = [pytest.mark.slow, pytest.mark.engine, pytest.mark.timeout(1200)]


class Job:
    """An accuracy run of two ranks, which is started again and again."""

    def __init__(self, folder: Path) -> None:
        self.results = folder / "offline" / "accuracy"
        sizes = ("--num-samples", str(ROWS), "--max-running", "4", "--device", "cpu")
        self.options = ["--accuracy", *GIVEN, *sizes, "--output-dir", str(folder)]

    def rows(self) -> list[int]:
        """The rows that have been answered."""
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


def ranks(agent: psutil.Process) -> list[psutil.Process]:
    """The processes of rank 0 and of rank 1."""
    return sorted(agent.children(), key=lambda one: (one.create_time(), one.pid))


def kill_rank(number: int) -> Callable[[psutil.Process], None]:
    return lambda agent: ranks(agent)[number].kill()


def kill_all(agent: psutil.Process) -> None:
    for one in [agent, *ranks(agent)]:
        one.kill()


def interrupt(agent: psutil.Process) -> None:
    agent.send_signal(signal.SIGINT)


def test_a_run_that_fails_again_and_again_comes_to_the_same_results(
    torchrun: Torchrun, tmp_path: Path
) -> None:
    whole, job = Job(tmp_path / "whole"), Job(tmp_path / "job")
    ended = torchrun.run(2, WORKER, "none", *whole.options)
    assert ended.returncode == 0, ended.stderr
    assert whole.state["state"] == "done"

    assert torchrun.run(2, WORKER, "full disk 0", *job.options).returncode != 0
    kept = job.rows()
    assert "completions.journal: can't be written: File too large" in job.state["error"]
    moments = random.Random(0)
    for fault, reasons in (
        ("exception 1", ("rank 1 of 2 (process ",)),
        ("exception 0", ("internal error: RuntimeError: the engine stopped",)),
        (kill_rank(1), ("rank 1 of 2 (process ",)),
        (kill_rank(0), ()),
        (interrupt, ("terminated", "interrupted")),
        (kill_all, ()),
    ):
        assert 0 < len(kept) < ROWS
        if isinstance(fault, str):
            torchrun.start(2, WORKER, fault, *job.options, "--resume")
        else:
            agent = torchrun.start(2, WORKER, "none", *job.options, "--resume")
            job.wait_for(len(kept) + 1)
            time.sleep(moments.uniform(0, 0.3))
            processes = ranks(agent)
            fault(agent)
            assert not psutil.wait_procs(processes, END_S)[1]
        ended = torchrun.wait()
        assert ended.returncode != 0
        rows = job.rows()
        assert rows[: len(kept)] == kept
        state = job.state
        assert len(rows) >= state["finished"]
        assert state["state"] == ("failed" if reasons else "running")
        assert not reasons or state["error"].startswith(reasons)
        kept = rows
    ended = torchrun.run(2, WORKER, "none", *job.options, "--resume")
    assert ended.returncode == 0, ended.stderr
    assert job.state["state"] == "done"
    assert_same_results(job.results, whole.results)


def test_sigterm_ends_all_ranks_in_words(torchrun: Torchrun, tmp_path: Path) -> None:
    job = Job(tmp_path)
    agent = torchrun.start(2, WORKER, "none", *job.options)
    job.wait_for(1)
    processes = ranks(agent)
    agent.terminate()
    assert not psutil.wait_procs(processes, END_S)[1]
    assert torchrun.wait(END_S).returncode != 0
    assert len(job.rows()) >= job.state["finished"] > 0
    assert job.state["state"] == "failed"
    assert job.state["error"] == "terminated"
