"""Finished runs side by side: python -m mlperf.summary DIR

Reads each run's `run.json` and, for accuracy runs, the graded results.
"""

import argparse
from pathlib import Path
from typing import Any

import entrypoint
from errors import InputFileError
from mlperf.result_folder import read_record
from mlperf.run import RECORD, RESULTS

COLUMNS = (
    ("samples/s", "samples_per_second", "{:.2f}"),
    ("tokens/s", "tokens_per_second", "{:.0f}"),
    ("TTFT p99 ms", "ttft_p99_ms", "{:.1f}"),
    ("TPOT p99 ms", "tpot_p99_ms", "{:.2f}"),
    ("exact_match", "exact_match", "{:.2f}"),
    ("tokens/sample", "tokens_per_sample", "{:.1f}"),
)


def summary(folder: Path) -> str:
    """One line per run, one line per task of each accuracy run, and the runs' directories.

    Raises: InputFileError if there is no finished run or its files can't be read;
    EmptyDataError or ColumnsError for graded results of another form.
    """
    records = sorted(folder.rglob(RECORD))
    if not records:
        raise InputFileError(
            f"{folder}: no finished run in it (no {RECORD}): pass run_mlperf's --output-dir"
        )
    runs = [(path, read_record(path)) for path in records]
    lines = [_row("run", [name for name, _, _ in COLUMNS])]
    lines += [_row(f"{run['mode']}, {run['test']}", _cells(run["figures"])) for _, run in runs]
    for path, run in runs:
        if run["test"] == "accuracy":
            lines += ["", f"exact_match per task ({run['mode']}):"]
            lines += [f"  {task:<16}{score:>8.2f}" for task, score in _tasks(path.parent)]
    return "\n".join([*lines, "", "files:", *(f"  {path.parent}" for path, _ in runs)])


def _cells(figures: dict[str, Any]) -> list[str]:
    """A missing figure is a dash: LoadGen measures no token latencies in Offline."""
    return [
        form.format(figures[key]) if figures.get(key) is not None else "-"
        for _, key, form in COLUMNS
    ]


def _row(name: str, cells: list[str]) -> str:
    return f"{name:<26}" + "".join(f"{cell:>14}" for cell in cells)


def _tasks(folder: Path) -> list[tuple[str, float]]:
    from data import schema
    from data.samples import read_frame

    columns = ("dataset", "prompt_accuracy")
    graded = read_frame(folder / f"{RESULTS}_evaluated.parquet", columns)
    schema.require(graded, columns)
    means = graded.groupby("dataset")["prompt_accuracy"].mean()
    return [(str(task), float(score)) for task, score in means.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path("mlperf_results"))
    print(summary(parser.parse_args().folder))


if __name__ == "__main__":
    entrypoint.run(main)
