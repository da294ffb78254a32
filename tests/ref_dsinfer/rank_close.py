"""run_eval_mpi.py whose communicators end as NCCL's do; what each rank of test_parallel runs.

rank_close.py captured|stuck ARGUMENTS

captured: destroying the process groups waits until no CUDA graph holds their communicators any
more. stuck: it never returns.
"""

import sys
import threading
from typing import Any

import torch.distributed as dist

import entrypoint
from ref_dsinfer import parallel
from ref_dsinfer.engine import Engine

NO_SIZE = -1  # of a step
released = threading.Event()
load, destroy = Engine.__init__, dist.destroy_process_group


class Graph:
    """A captured CUDA graph."""

    def __init__(self, releases: bool) -> None:
        self._releases = releases

    def reset(self) -> None:
        if self._releases:
            released.set()


def load_with_graph(self: Engine, *args: Any, **changes: Any) -> None:
    load(self, *args, **changes)
    runner = self.runner
    runner.fix_shapes(self.scheduler.step_tokens, 64, self.max_model_len)
    assert runner.decoder
    graph = Graph(releases=KIND == "captured")
    runner.decoder._graphs[NO_SIZE] = graph  # type: ignore[assignment]


def destroy_when_released(group: dist.ProcessGroup | None = None) -> None:
    released.wait()
    destroy(group)


def main() -> None:
    import run_eval_mpi

    run_eval_mpi.main()


if __name__ == "__main__":
    KIND = sys.argv.pop(1)
    if KIND == "stuck":
        parallel.SHUTDOWN_S = 1.0
    Engine.__init__ = load_with_graph  # type: ignore[method-assign]
    dist.destroy_process_group = destroy_when_released
    entrypoint.run(main)
