"""run_mlperf_mpi with a fault in one rank: started by torchrun in its place.

$FAULT is its name and the rank that has it, such as `exception 1`; `none` has none.
"""

import os
import resource
import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
JOURNAL_BYTES = 3000  # that fit on the full disk: a few answers
STEPS = 60  # of the engine before an exception


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
    sys.path.insert(0, str(ROOT))
    fault, _, rank = os.environ["FAULT"].rpartition(" ")
    if rank == os.environ["RANK"]:
        inject(fault)
    runpy.run_path(str(ROOT / "run_mlperf_mpi.py"), run_name="__main__")
