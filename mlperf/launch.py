"""Runs of run_mlperf as processes of their own, one after another."""

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import entrypoint

ROOT = Path(__file__).parents[1]


def script(processes: int = 0, python: str = sys.executable) -> list[str]:
    """The beginning of a run's command.

    `processes`: those that torchrun starts; 0: the script is started without it. `python`: the
    interpreter of the engine's environment.
    """
    if not processes:
        return [python, str(ROOT / "run_mlperf.py")]
    launcher = [python, "-m", "torch.distributed.run", "--local-addr=127.0.0.1"]
    return [*launcher, f"--nproc_per_node={processes}", str(ROOT / "run_mlperf_mpi.py")]


def run_to_end(command: Sequence[str]) -> int:
    """Run a command to its end, also after SIGINT and SIGTERM, of which it gets its own.

    Returns its exit code.
    """
    with subprocess.Popen(command) as process:
        try:
            return process.wait()
        except KeyboardInterrupt as interrupt:
            if isinstance(interrupt, entrypoint.Terminated):  # a terminal sends SIGINT to both
                process.send_signal(signal.SIGTERM)
            process.wait()
            raise
