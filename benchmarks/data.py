"""Speed and memory of `data/`: each measure beside a peer in the same run.

Every measure runs in a temporary directory. A figure over its limit makes the exit code 1. Peak
memory is that of a process that does nothing else, its packages included.

    python benchmarks/data.py [MEASURE ...] [--rows 4388]
"""

import argparse
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":  # the packages of this tree, and none of the files beside this one
    sys.path[0] = str(Path(__file__).parents[1])

from benchmark import PROMPT_TOKENS, ROWS, TASK_ROWS, TOKENS_PER_SAMPLE

if TYPE_CHECKING:
    import pandas as pd

LOADING_S = 1.0  # CPU seconds, of the full-size data set
PANDAS = "import pandas, pyarrow.parquet"
OURS = f"{PANDAS}\nfrom data.samples import read_frame"
REPEAT = 3  # the least is printed
CHARACTERS = 4  # a token
ANSWERS = ("ref_output", "tok_ref_output", "tok_ref_output_len")
WORDS = ("the", "of", "sum", "therefore", "integer", "x^2", "number", "is", "such", "that", "é")


@dataclass(frozen=True)
class Figure:
    """One measured value."""

    name: str
    value: float
    unit: str
    limit: float | None = None  # more than this is a failure
    peer: float | None = None  # what the peer took, in the same unit


Measure = Callable[[Path, int], list[Figure]]  # of an empty directory and a number of rows


def loading(folder: Path, rows: int) -> list[Figure]:
    """Reading a data set of the official file's lengths, and pandas reading it."""
    return _loading(full_size(rows).drop(columns=list(ANSWERS)), folder, LOADING_S)


def loading_answers(folder: Path, rows: int) -> list[Figure]:
    """The same with the official file's reference answers, which no run needs."""
    return _loading(full_size(rows), folder, None)


def _loading(frame: "pd.DataFrame", folder: Path, limit: float | None) -> list[Figure]:
    from data import frames

    files = [folder / f"set{ending}" for ending in (".pkl", ".parquet", ".jsonl")]
    for file in files:
        frames.write(frame, file, file.suffix)
    peers = {
        ".pkl": "pandas.read_pickle(path)",
        ".parquet": "pandas.read_parquet(path)",
        ".jsonl": "pandas.read_json(path, lines=True)",
    }
    figures = []
    for file in files:
        ours, memory = _in_a_process(OURS, "read_frame(path)", file)
        theirs, peer_memory = _in_a_process(PANDAS, peers[file.suffix], file)
        name = f"{file.suffix} of {file.stat().st_size / 1e6:.0f} MB"
        figures.append(Figure(f"loading {name}", ours, "s CPU", limit, theirs))
        figures.append(Figure(f"peak memory of loading {name}", memory, "MB", None, peer_memory))
    return figures


MEASURES: dict[str, Measure] = {
    "loading": loading,
    "loading-answers": loading_answers,
}


def full_size(rows: int, seed: int = 0) -> "pd.DataFrame":
    """Rows with the official file's columns and mean lengths."""
    import numpy as np
    import pandas as pd

    rng, numbers = random.Random(seed), np.random.default_rng(seed)
    text = " ".join(rng.choices(WORDS, k=200_000))

    def lengths(mean: float) -> list[int]:
        return [max(1, round(mean * rng.lognormvariate(-0.32, 0.8))) for _ in range(rows)]

    def texts(tokens: list[int]) -> list[str]:
        starts = [rng.randrange(len(text) // 2) for _ in tokens]
        pairs = zip(starts, tokens, strict=True)
        return [text[start : start + CHARACTERS * count] for start, count in pairs]

    def ids(tokens: list[int]) -> list[Any]:
        most = np.log(128_000)  # frequent tokens have small ids
        return [np.exp(most * numbers.random(n)).astype(np.int32) for n in tokens]

    tasks = rng.choices(list(TASK_ROWS), weights=list(TASK_ROWS.values()), k=rows)
    prompts, answers = lengths(PROMPT_TOKENS), lengths(TOKENS_PER_SAMPLE)
    return pd.DataFrame(
        {
            "dataset": tasks,
            "question": texts(prompts),
            "text_input": texts(prompts),
            "ground_truth": [str(rng.randrange(1000)) for _ in tasks],
            "metric": ["exact_match"] * rows,
            "tok_input": ids(prompts),
            "tok_input_len": prompts,
            "ref_output": texts(answers),
            "tok_ref_output": ids(answers),
            "tok_ref_output_len": answers,
        }
    )


_TIMED = """
import sys, time
from pathlib import Path
{imports}
path = Path(sys.argv[1])
start = time.process_time()
value = {expression}
seconds = time.process_time() - start
status = Path("/proc/self/status").read_text()  # resource's peak includes the parent's
print(seconds, int(status.partition("VmHWM:")[2].split()[0]) / 1024)
"""


def _in_a_process(imports: str, expression: str, path: Path) -> tuple[float, float]:
    """Least CPU seconds of an expression of `path`, without imports, and peak memory in MB."""
    code = _TIMED.format(imports=imports, expression=expression)
    command = [sys.executable, "-c", code, str(path)]
    printed = [
        subprocess.run(
            command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[1]
        ).stdout.split()
        for _ in range(REPEAT)
    ]
    return min(float(line[0]) for line in printed), max(float(line[1]) for line in printed)


def main() -> None:
    """Run the measures, print a line a figure; exit code 1 if one is over its limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("measure", nargs="*", metavar="MEASURE", help=f"{', '.join(MEASURES)}")
    parser.add_argument("--rows", type=int, default=ROWS, metavar="N")
    args = parser.parse_args()
    if unknown := set(args.measure) - set(MEASURES):
        parser.error(f"no measure {sorted(unknown)[0]} (there are: {', '.join(MEASURES)})")
    failed = False
    for name in args.measure or MEASURES:
        with tempfile.TemporaryDirectory() as folder:
            for figure in MEASURES[name](Path(folder), args.rows):
                over = figure.limit is not None and figure.value > figure.limit
                failed |= over
                print(_line(figure, over), flush=True)
    sys.exit(failed)


def _line(figure: Figure, over: bool) -> str:
    parts = [f"{figure.name:<44} {figure.value:9.2f} {figure.unit}"]
    if figure.peer is not None:
        parts.append(f"peer {figure.peer:.2f} {figure.unit}, {figure.value / figure.peer:.2f}x")
    if figure.limit is not None:
        parts.append(f"limit {figure.limit:g}{', OVER' if over else ''}")
    return "  ".join(parts)


if __name__ == "__main__":
    main()
