"""Speed and memory of reading a data set."""

import random
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark import PROMPT_TOKENS, TASK_ROWS, TOKENS_PER_SAMPLE
from benchmarks.figures import Figure

if TYPE_CHECKING:
    import pandas as pd

LOADING_S = 1.0  # CPU seconds, of the full-size data set
PANDAS = "import pandas, pyarrow.parquet"
OURS = f"{PANDAS}\nfrom data.samples import read_frame"
REPEAT = 3  # the least is printed
CHARACTERS = 4  # a token
ANSWERS = ("ref_output", "tok_ref_output", "tok_ref_output_len")
WORDS = ("the", "of", "sum", "therefore", "integer", "x^2", "number", "is", "such", "that", "é")


def loading(folder: Path, rows: float) -> list[Figure]:
    """Reading a data set of the official file's lengths, and pandas reading it."""
    return _loading(full_size(round(rows)).drop(columns=list(ANSWERS)), folder, LOADING_S)


def loading_answers(folder: Path, rows: float) -> list[Figure]:
    """The same with the official file's reference answers, which no run needs."""
    return _loading(full_size(round(rows)), folder, None)


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
