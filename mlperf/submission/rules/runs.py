"""Rules on what the runs recorded about themselves, in runs.json. Other harnesses write none."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmark import TASK_ROWS
from mlperf.submission.findings import Fault, Level
from mlperf.submission.tree import RUNS, Result, System, line_with

# Fields of run.json that are the same in all runs of a system, and of one scenario
OF_SYSTEM = ("machine", "backend", "versions")
OF_SCENARIO = (*OF_SYSTEM, "mode", "engine")
# The engine's settings that don't matter: where it writes, how long it may take
_FREE = ("log", "coalesce", "stall_timeout", "start_timeout")


def submittable(result: Result) -> Iterator[Fault]:
    """No run says that it can't be submitted; the open division has its own rules."""
    path = result.folder / RUNS
    level: Level = "error" if result.system.closed else "note"
    for test, run in _records(result):
        if test == "compliance":
            continue  # its settings are those of the test, not of the benchmark
        if run.get("resumed"):
            yield Fault(
                path, f"the {test} run was resumed", line_with(path, '"resumed"', test), level
            )
        reasons = run.get("not_submittable_because")
        for reason in reasons if isinstance(reasons, list) else []:
            yield Fault(path, f"the {test} run: {reason}", _line(path, str(reason), test), level)


def data_set(result: Result) -> Iterator[Fault]:
    """The graded rows are those of the benchmark's data set, task by task."""
    tasks = result.runs.get("task_rows")
    if isinstance(tasks, dict) and tasks != TASK_ROWS:
        yield Fault(
            result.folder / RUNS,
            f"the data set has {_listed(tasks)} rows, not {_listed(TASK_ROWS)}",
            line_with(result.folder / RUNS, '"task_rows"'),
        )


def one_configuration(result: Result) -> Iterator[Fault]:
    """The runs of a scenario are of one system, with the same settings of the engine."""
    records = _records(result)
    for test, run in records[1:]:
        first, reference = records[0]
        for field in OF_SCENARIO:
            if difference := _difference(field, reference, run):
                yield Fault(result.folder / RUNS, f"{first} and {test} runs differ: {difference}")


def one_system(system: System) -> Iterator[Fault]:
    """The scenarios are of one system."""
    runs = [(result, record) for result in system.results for _, record in _records(result)[:1]]
    for result, run in runs[1:]:
        first, reference = runs[0]
        for field in OF_SYSTEM:
            if difference := _difference(field, reference, run):
                yield Fault(
                    result.folder / RUNS, f"another system than in {first.scenario}: {difference}"
                )


def _records(result: Result) -> list[tuple[str, dict[str, Any]]]:
    names = ("performance", "accuracy", "compliance")
    return [(name, run) for name in names if isinstance(run := result.runs.get(name), dict)]


def _difference(field: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """How a field differs in two records, or nothing if it does not."""
    left, right = one.get(field), other.get(field)
    if isinstance(left, dict) and isinstance(right, dict):
        keys = sorted({*left, *right} - set(_FREE))
        return ", ".join(
            f"{field}.{key} {left.get(key)!r} and {right.get(key)!r}"
            for key in keys
            if left.get(key) != right.get(key)
        )
    return "" if left == right else f"{field} {left!r} and {right!r}"


def _line(path: Path, reason: str, test: str) -> int | None:
    return line_with(path, reason[:40].replace('"', '\\"'), test)


def _listed(rows: Mapping[str, Any]) -> str:
    return ", ".join(f"{task} {rows[task]}" for task in sorted(rows))
