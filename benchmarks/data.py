"""Speed and memory of `data/`: each measure beside a peer in the same run.

Every measure runs in a temporary directory. A figure over its limit makes the exit code 1. Peak
memory is that of a process that does nothing else, its packages included.

    python benchmarks/data.py [MEASURE[=SIZE] ...]
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":  # the packages of this tree, and none of the files beside this one
    sys.path[0] = str(Path(__file__).parents[1])

from benchmark import ROWS
from benchmarks.fetch import fetching
from benchmarks.figures import Figure
from benchmarks.loading import loading, loading_answers
from benchmarks.prepare import preparing, problem


class Measure(NamedTuple):
    """A measure, and the size of what it measures."""

    run: Callable[[Path, float], list[Figure]]  # of an empty directory and a size
    size: float
    unit: str  # of the size


MEASURES = {
    "loading": Measure(loading, ROWS, "rows"),
    "loading-answers": Measure(loading_answers, ROWS, "rows"),
    "preparing": Measure(preparing, ROWS, "rows, always"),
    "problem": Measure(problem, 4, "GB of tests"),
    "fetching": Measure(fetching, 146, "MB"),
}


def main() -> None:
    """Run the measures, print a line a figure; exit code 1 if one is over its limit."""
    names = ", ".join(f"{name}={m.size:g} ({m.unit})" for name, m in MEASURES.items())
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("measure", nargs="*", metavar="MEASURE[=SIZE]", help=names)
    args = parser.parse_args()
    chosen = []
    for words in args.measure or MEASURES:
        name, _, size = words.partition("=")
        if name not in MEASURES:
            parser.error(f"no measure {name} (there are: {', '.join(MEASURES)})")
        try:
            chosen.append((MEASURES[name], float(size or MEASURES[name].size)))
        except ValueError:
            parser.error(f"{words}: the size must be a number ({MEASURES[name].unit})")
    failed = False
    for measure, amount in chosen:
        with tempfile.TemporaryDirectory() as folder:
            for figure in measure.run(Path(folder), amount):
                failed |= figure.over
                print(figure, flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
