"""Runs of run_mlperf_mpi by torchrun's agent, with a fault in one rank.

Each line of the input is a run: a JSON list of a fault and the script's options. A fault is its
name and the rank that has it, such as `exception 1`; `none` has none. Prints the agent's PID, and
its exit code once it has ended.

All of them are forks of this process, which has imported the packages: three processes that do that
on their own take longer than the rest of a run.
"""

import json
import os
import resource
import runpy
import signal
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from torch.distributed import run as torchrun
from torch.distributed.launcher.api import elastic_launch

from tests.forked import PACKAGES

ROOT = Path(__file__).parents[2]
SCRIPT = str(ROOT / "run_mlperf_mpi.py")
TORCHRUN = ("--nproc_per_node=2", "--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0")
JOURNAL_BYTES = 1500  # that fit on the full disk: a few answers
STEPS = 40  # of the engine before an exception


def main() -> None:
    for package in PACKAGES:
        import_module(package)
    for line in sys.stdin:
        fault, options = json.loads(line)
        agent = os.fork()
        if not agent:
            launch(fault, options)
        print(agent, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(agent, 0)[1]), flush=True)


def launch(fault: str, options: list[str]) -> NoReturn:
    """In a fork: what torchrun does."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    config, _, _ = torchrun.config_from_args(torchrun.parse_args([*TORCHRUN, SCRIPT]))
    elastic_launch(replace(config, start_method="fork"), run_rank)(fault, options)
    sys.exit()


def run_rank(fault: str, options: list[str]) -> None:
    """In a fork of that: what `python run_mlperf_mpi.py` does once Python has started."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # not the agent's
    signal.signal(signal.SIGINT, signal.default_int_handler)
    name, _, rank = fault.rpartition(" ")
    if rank == os.environ["RANK"]:
        inject(name)
    sys.argv = [SCRIPT, *options]
    runpy.run_path(SCRIPT, run_name="__main__")


def inject(fault: str) -> None:
    """Prepare this process for its fault."""
    if fault == "full disk":
        resource.setrlimit(resource.RLIMIT_FSIZE, (JOURNAL_BYTES, JOURNAL_BYTES))
    if fault == "exception":
        from ref_dsinfer.engine import Engine

        step, steps = Engine.step, iter(range(STEPS))

        def failing(self: Engine) -> list:
            if next(steps, None) is None:
                raise RuntimeError("a bug in a rank")
            return step(self)

        Engine.step = failing  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
