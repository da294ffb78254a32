"""run_mlperf_mpi.py with a fault in one rank; what each rank of test_rank_faults runs.

faulty_rank.py FAULT ARGUMENTS

FAULT is its name and the rank that has it, such as `exception 1`; `none` has none.
"""

import os
import resource
import sys
from itertools import count

import entrypoint

JOURNAL_BYTES = 1500  # that fit on the full disk: a few answers
STEPS = 40  # of the engine before an exception


def inject(fault: str) -> None:
    """Prepare this process for its fault."""
    if fault == "full disk":
        resource.setrlimit(resource.RLIMIT_FSIZE, (JOURNAL_BYTES, JOURNAL_BYTES))
    if fault == "exception":
        from ref_dsinfer.engine import Engine

        step, steps = Engine.step, count()

        def failing(self: Engine) -> list:
            if next(steps) == STEPS:
                raise RuntimeError("a bug in a rank")
            return step(self)

        Engine.step = failing  # type: ignore[method-assign]


def main() -> None:
    name, _, rank = sys.argv.pop(1).rpartition(" ")
    if rank == os.environ["RANK"]:
        inject(name)
    import run_mlperf_mpi

    run_mlperf_mpi.main()


if __name__ == "__main__":
    entrypoint.run(main)
