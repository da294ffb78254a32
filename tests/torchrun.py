"""Starts torchrun's agent and its ranks in forks of one process that has imported their packages.

An agent and two ranks that each import torch take longer than most of what tests let them do. Tests
of torchrun's command itself start it as users do.

As a program, it runs what each line of its input says: a JSON list of the number of ranks, the
script with its arguments, and the files for stdout and stderr. It prints the agent's PID, and its
exit code once it has ended.
"""

import gc
import json
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import psutil

from tests.forked import MODULES, PACKAGES, ROOT


class Torchrun:
    """Starts one agent after another."""

    def __init__(self) -> None:
        self._agent: psutil.Process | None = None
        self._words: list[str] = []
        with ExitStack() as resources:
            self._folder = Path(resources.enter_context(tempfile.TemporaryDirectory()))
            self._process = resources.enter_context(
                subprocess.Popen(
                    [sys.executable, "-m", "tests.torchrun"],
                    cwd=ROOT,
                    env=os.environ | {"OMP_NUM_THREADS": "1"},  # as torchrun sets it for its ranks
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            self._resources = resources.pop_all()

    def start(self, ranks: int, script: Path, *arguments: object) -> psutil.Process:
        """Returns the agent. One that a failed test has left is killed first."""
        self._kill()
        self._words = [str(script), *map(str, arguments)]
        files = [str(self._folder / name) for name in ("out", "err")]
        assert self._process.stdin
        print(json.dumps([ranks, self._words, files]), file=self._process.stdin, flush=True)
        self._agent = psutil.Process(self._number())
        return self._agent

    def wait(self, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Wait until the agent has ended. Raises: psutil.TimeoutExpired after so many seconds."""
        assert self._agent
        self._agent.wait(timeout)
        self._agent = None
        code = self._number()
        texts = [(self._folder / name).read_text() for name in ("out", "err")]
        return subprocess.CompletedProcess(self._words, code, *texts)

    def run(
        self, ranks: int, script: Path, *arguments: object, timeout: float = 300
    ) -> subprocess.CompletedProcess[str]:
        """Start an agent and wait for its end."""
        self.start(ranks, script, *arguments)
        return self.wait(timeout)

    def close(self) -> None:
        """End all processes."""
        self._kill()
        self._resources.close()

    def _kill(self) -> None:
        if self._agent:
            for one in [*self._agent.children(recursive=True), self._agent]:
                one.kill()
            self.wait()

    def _number(self) -> int:
        assert self._process.stdout
        return int(self._process.stdout.readline())


def main() -> None:
    for module in ("torch.distributed.run", *PACKAGES, *MODULES, "backends.pytorch"):
        import_module(module)
    gc.freeze()  # as in tests/forked.py
    for line in sys.stdin:
        ranks, words, files = json.loads(line)
        agent = os.fork()
        if not agent:
            launch([f"--nproc_per_node={ranks}", *words], [os.devnull, *files])
        print(agent, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(agent, 0)[1]), flush=True)


def launch(words: list[str], streams: Iterable[str]) -> NoReturn:
    """In a fork: torchrun, whose ranks are forks of that."""
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.subprocess_handler import SubprocessHandler

    for number, path in enumerate(streams):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
    SubprocessHandler._popen = _popen  # type: ignore[method-assign, assignment]
    run.main(["--standalone", *words])
    sys.exit()


def _popen(_: object, command: Sequence[str], environment: dict[str, str]) -> Any:
    """In the place of SubprocessHandler's: a fork that has what Popen objects have."""
    rank = multiprocessing.get_context("fork").Process(
        target=_run_rank, args=(command, environment)
    )
    rank.start()
    return rank._popen  # type: ignore[attr-defined]


def _run_rank(command: Sequence[str], environment: dict[str, str]) -> None:
    """In a fork of the agent: what the `command`, `python -u SCRIPT ...`, does once Python has
    started."""
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # not the agent's
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.update(environment)
    sys.argv = list(command[2:])
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
