"""Runs by torchrun that fail in every way, and accuracy runs that go on after them."""

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from data.journal import read_journal
from mlperf.run import JOURNAL
from tests.jobs import GIVEN, ROOT
from tests.mlperf.test_run import assert_same_results

ROWS = 20
START_S = 240
END_S = 60  # from a fault to the end, on a busy machine
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")

pytestmark = [pytest.mark.slow, pytest.mark.engine, pytest.mark.timeout(1200)]


class Launcher:
    """Starts torchrun's agent with two ranks, in forks of one process."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.mlperf.faulty_ranks"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, fault: str, options: list[str]) -> psutil.Process:
        """Returns the agent. The one before must have ended."""
        assert self.process.stdin
        print(json.dumps([fault, options]), file=self.process.stdin, flush=True)
        return psutil.Process(self._number())

    def wait(self) -> int:
        """The agent's exit code, once it has ended."""
        return self._number()

    def _number(self) -> int:
        assert self.process.stdout
        return int(self.process.stdout.readline())


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


@pytest.fixture
def launcher() -> Iterator[Launcher]:
    launcher = Launcher()
    with launcher.process:
        yield launcher


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
    launcher: Launcher, tmp_path: Path
) -> None:
    whole, job = Job(tmp_path / "whole"), Job(tmp_path / "job")
    launcher.start("none", whole.options)
    assert launcher.wait() == 0
    assert whole.state["state"] == "done"

    launcher.start("full disk 0", job.options)
    assert launcher.wait() != 0
    kept = job.rows()
    assert "completions.journal: can't be written: File too large" in job.state["error"]
    moments = random.Random(0)
    for fault, reasons in (
        ("exception 1", ("rank 1 of 2 (process ", "terminated")),  # by torchrun, if that is faster
        ("exception 0", ("internal error: RuntimeError: the engine stopped",)),
        (kill_rank(1), ("rank 1 of 2 (process ",)),
        (kill_rank(0), ()),
        (interrupt, ("terminated", "interrupted")),
        (kill_all, ()),
    ):
        assert 0 < len(kept) < ROWS
        if isinstance(fault, str):
            launcher.start(fault, [*job.options, "--resume"])
        else:
            agent = launcher.start("none", [*job.options, "--resume"])
            job.wait_for(len(kept) + 1)
            time.sleep(moments.uniform(0, 0.3))
            processes = ranks(agent)
            fault(agent)
            assert not psutil.wait_procs(processes, END_S)[1]
        assert launcher.wait() != 0
        rows = job.rows()
        assert rows[: len(kept)] == kept
        state = job.state
        assert len(rows) >= state["finished"]
        assert state["state"] == ("failed" if reasons else "running")
        assert not reasons or state["error"].startswith(reasons)
        kept = rows
    launcher.start("none", [*job.options, "--resume"])
    assert launcher.wait() == 0
    assert job.state["state"] == "done"
    assert_same_results(job.results, whole.results)


def test_sigterm_ends_all_ranks_in_words(tmp_path: Path) -> None:
    job = Job(tmp_path)
    agent = subprocess.Popen(
        [sys.executable, *TORCHRUN, "run_mlperf_mpi.py", *job.options],
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
    )
    job.wait_for(1)
    processes = ranks(psutil.Process(agent.pid))
    agent.terminate()
    assert agent.wait(END_S) != 0
    assert not psutil.wait_procs(processes, END_S)[1]
    assert len(job.rows()) >= job.state["finished"] > 0
    assert job.state["state"] == "failed"
    assert job.state["error"] == "terminated"
