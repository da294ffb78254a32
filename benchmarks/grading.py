"""What grading costs, with the bar beside each figure: rows without programs, programs, the start
of a sandboxed process. With --reference, the same rows through the public `eval_accuracy.py`.

Time is that of the whole command, memory the peak of all its processes together, in which shared
pages count once. The reference runs from a checkout that has its submodules and imports its
packages; its LiveCodeBench data set is stood in for by the same made-up problems.

    python benchmarks/grading.py
"""

import argparse
import contextlib
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

if __name__ == "__main__":  # the packages of this tree, and none of the files beside this one
    sys.path[0] = str(Path(__file__).parents[1])

from benchmark import ROWS
from benchmarks.grading_rows import frame, programs
from grading.sandbox.inside.limits import Limits
from grading.sandbox.sandbox import Sandbox

ROOT = Path(__file__).parents[1]
SAMPLE_S = 0.5  # reading the memory of a process tree takes time from it
PROBLEMS = "problems.jsonl"
PROBLEMS_MODULE = """import json

def load_dataset(*names, **options):
    with open({path!r}) as file:
        return [json.loads(line) for line in file]
"""


@dataclass(frozen=True)
class Cost:
    """Of one command."""

    seconds: float
    peak: int  # bytes
    exact_match: str  # as printed


def run(command: list[str], folder: Path, modules: Path) -> Cost:
    """Run a command to its end, watching the memory of its process tree. One that fails ends this.

    `modules`: a folder that goes first on its path of imports.
    """
    log = folder / "log.txt"
    path = os.pathsep.join(filter(None, (str(modules), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"PYTHONPATH": path}
    began = time.perf_counter()
    with (
        log.open("w") as output,
        subprocess.Popen(
            command, cwd=folder, env=environment, stdout=output, stderr=output
        ) as process,
    ):
        watched = psutil.Process(process.pid)
        peak = 0
        while process.returncode is None:
            peak = max(peak, _memory(watched))
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(SAMPLE_S)
        seconds = time.perf_counter() - began
    log_text = log.read_text(errors="replace")
    match = re.search(r"'exact_match': ([\d.]+)", log_text)
    if process.returncode or match is None:
        sys.exit(f"{' '.join(command)} failed:\n{log_text[-2000:]}")
    return Cost(seconds, peak, match[1])


def _memory(process: psutil.Process) -> int:
    """Bytes of a process and its descendants, shared pages once."""
    total = 0
    try:
        for one in (process, *process.children(recursive=True)):
            total += _size(one)
    except psutil.NoSuchProcess:
        pass  # it has just ended
    return total


def _size(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except psutil.AccessDenied:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


def evaluate(
    columns: dict[str, list[Any]], folder: Path, script: Path, problems: Path, *options: str
) -> Cost:
    """Grade a frame by an `eval_accuracy.py`."""
    import pandas as pd

    modules = folder / "modules"
    modules.mkdir(parents=True)
    (modules / "datasets.py").write_text(PROBLEMS_MODULE.format(path=str(problems)))
    answers = folder / "answers.pkl"
    pd.DataFrame(columns).to_pickle(answers)
    command = [sys.executable, str(script), "--input-file", str(answers), *options]
    return run(command, folder, modules)


def starts(count: int) -> list[float]:
    """Seconds that each start of a sandboxed process takes, once the first has been."""
    seconds = []
    with Sandbox() as sandbox:
        for _ in range(count + 1):
            began = time.perf_counter()
            with sandbox.start("grading.tasks.program", Limits()):
                seconds.append(time.perf_counter() - began)
    return seconds[1:]


def show(name: str, figure: str, bar: str = "") -> None:
    print(f"{name:<48}{figure:>12}   {bar}", flush=True)


def compare(
    what: str, columns: dict[str, list[Any]], bars: tuple[str, str], args: argparse.Namespace
) -> tuple[float, float]:
    """Grade a frame by ours, and by the reference where there is one. Seconds of each."""
    folder, problems = args.folder / what, args.folder / PROBLEMS
    options = ["--expected-rows", str(len(columns["dataset"]))]
    if problems.exists():
        options += ["--livecodebench-file", str(problems)]
    ours = evaluate(columns, folder / "ours", ROOT / "eval_accuracy.py", problems, *options)
    show(what, f"{ours.seconds:.1f} s", bars[0])
    show("  peak memory", f"{ours.peak / 1e6:.0f} MB", bars[1])
    show("  exact_match", ours.exact_match[:10])
    if not args.reference:
        return ours.seconds, 0.0
    script = args.reference.resolve() / "eval_accuracy.py"
    theirs = evaluate(columns, folder / "theirs", script, problems)
    show("  the reference", f"{theirs.seconds:.1f} s")
    show("  its exact_match", theirs.exact_match[:10])
    return ours.seconds, theirs.seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=ROWS, help=f"without programs; default: {ROWS}")
    parser.add_argument("--programs", type=int, default=349, help="default: 349")
    parser.add_argument("--tests", type=int, default=20, help="a program; default: 20")
    parser.add_argument("--starts", type=int, default=50, help="of a process; default: 50")
    parser.add_argument("--cores", type=int, default=2, help="to use; default: 2")
    parser.add_argument(
        "--reference", type=Path, metavar="DIR", help="where another eval_accuracy.py lies, ready"
    )
    args = parser.parse_args()

    cores = sorted(os.sched_getaffinity(0))[: args.cores]
    os.sched_setaffinity(0, cores)
    print(f"on {len(cores)} cores")
    with tempfile.TemporaryDirectory() as name:
        args.folder = Path(name)
        rows = frame(args.rows)
        size = sum(map(len, rows["model_output"])) / 1e6
        what = f"{args.rows} rows of {size:.0f} million characters"
        seconds = [compare(what, rows, ("< 25 s", "< 700 MB"), args)]
        if args.programs:
            coded = programs(args.programs, args.tests, args.folder / PROBLEMS)
            what = f"{args.programs} programs, {args.tests} tests each"
            seconds.append(compare(what, coded, ("< 240 s", ""), args))
        if args.reference:
            took, theirs = map(sum, zip(*seconds, strict=True))
            show("times the reference's rows a second", f"{theirs / took:.1f}", ">= 8")
    start_s = starts(args.starts)
    show("start of a sandboxed process", f"{statistics.median(start_s) * 1e3:.1f} ms", "< 15 ms")


if __name__ == "__main__":
    main()
