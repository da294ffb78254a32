"""Writes the report of a run into its result folder."""

import json
import logging
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import entrypoint
from benchmark import ROUND
from data.samples import TASKS
from errors import ColumnsError, EmptyDataError, InputFileError, ModelError, OutputError
from mlperf import result_folder
from mlperf.page.document import HERE as PAGE
from mlperf.page.document import document
from mlperf.page.text import number
from mlperf.report_page import figures, samples, tables
from mlperf.report_page.verdict import verdict
from mlperf.result_folder import ResultFolder
from mlperf.run import RECORD, REPORT
from ref_dsinfer.files import write_text

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

HERE = Path(__file__).parent


def write_report(path: Path) -> Path:
    """Write the report of the run in a result folder, and return its path.

    Raises: InputFileError if there is no run in the folder; OutputError.
    """
    report = path / REPORT
    write_text(report, render(result_folder.read(path), datetime.now().astimezone()))
    return report


def write_or_warn(path: Path) -> None:
    """Write the report of the run in a result folder; a warning says why it can't be written."""
    try:
        log.info("wrote %s", write_report(path))
    except (InputFileError, OutputError) as error:
        log.warning("no report: %s", error)


@contextmanager
def reported(path: Path) -> Iterator[None]:
    """Write the report when the block ends, also if it fails, or another thread ends the process.

    A report that can't be written is a warning: the run's own files matter more.
    """

    def write(reason: str) -> None:
        write_or_warn(path)

    entrypoint.before_failing.append(write)
    try:
        yield
    finally:
        entrypoint.before_failing.remove(write)
        write("")


def render(folder: ResultFolder, now: datetime) -> Iterator[str]:
    """The page about a run, as it is known at the time `now`, in pieces."""
    rows, faults = _rows(folder)
    folder = replace(folder, faults=[*folder.faults, *faults])
    record = (folder.record if folder.finished else None) or {}
    metadata = folder.timeline.metadata if folder.timeline else None
    mode = record.get("mode") or (metadata.scenario if metadata else None) or "run"
    test = record.get("test") or (metadata.mode if metadata else "")
    backend = record.get("backend") or (metadata.backend if metadata else "")
    links = tables.links(rows)
    charts = [*figures.over_time(folder), *figures.latency_charts(folder)]
    if rows is not None:
        charts.append(figures.lengths(rows))
    if folder.grading is not None and (chart := figures.accuracy(folder.grading)):
        charts.insert(0, chart)
    values = {
        "name": " ".join(filter(None, (mode.capitalize(), test))),
        "backend": backend,
        "round": ROUND,
        "folder": folder,
        "written": now.isoformat(" ", "seconds"),
        "started": str((folder.state or {}).get("started") or "").replace("T", " "),
        "verdict": verdict(folder, now),
        "tiles": figures.tiles(folder),
        "charts": charts,
        "slowest": tables.slowest(folder, links),
        "failures": tables.failures(folder, rows, links),
        "endpoints": tables.endpoints(folder),
        "rows": None if rows is None else len(rows),
        "graded": rows is not None and bool(rows["grade"].notna().any()),
        "tasks": [] if rows is None else _tasks(rows["task"]),
        "command": record.get("command"),
        "configuration": list(_configuration(record, folder.engine)),
    }
    return document(
        HERE / "report.html",
        f"{values['name']}, {backend}",
        values,
        [PAGE / "data.js", HERE / "samples.js"] if rows is not None else [],
        samples.blocks(rows) if rows is not None else [],
    )


def _rows(folder: ResultFolder) -> "tuple[pd.DataFrame | None, list[str]]":
    """The rows of a run's answers, None if there are none that can be read; and their faults."""
    path = samples.answers_path(folder)
    try:
        if path is None:
            return samples.journalled(folder), []
        rows = samples.read_samples(path, folder.timeline)
    except (InputFileError, ColumnsError, EmptyDataError, ModelError) as error:
        return None, [str(error)]
    return rows, list(_contradictions(folder, rows, path))


def _contradictions(folder: ResultFolder, rows: "pd.DataFrame", path: Path) -> Iterator[str]:
    """What a run's answers say otherwise than its figures and its timeline."""
    counted = {
        "exact_match": 100 * float((rows["grade"] == "right").mean()),
        "tokens_per_sample": float(rows["tokens"].astype(float).mean()),
    }
    for name, value in counted.items():
        figure = folder.figures.get(name)
        if figure is not None and not math.isclose(figure, value, rel_tol=1e-6):
            yield f"{path}: {name} of its rows is {value:.4f}, but {RECORD} says {figure:.4f}"
    if folder.timeline is not None:
        resumed = ((folder.record or {}).get("resumed") or {}).get("samples", 0)
        requests = len(folder.timeline.requests)
        if requests + resumed != len(rows):
            yield f"{path} has {len(rows)} answers, but timeline.parquet {requests} requests"


def _tasks(names: Iterable[str]) -> list[str]:
    """The tasks that occur, in the table's order, then what is no task."""
    unique = set(names)
    return [*(task for task in TASKS if task in unique), *sorted(unique - set(TASKS))]


def _configuration(
    record: dict[str, Any], engine: dict[str, Any] | None
) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Groups of names and values: how and on what it was run."""
    for title, content in (
        ("Engine's effective configuration", engine),
        ("Engine's options", record.get("engine")),
        ("LoadGen's settings", record.get("settings")),
        ("Machine", record.get("machine")),
        ("Versions", record.get("versions")),
        ("Prefix cache", record.get("prefix_cache")),
    ):
        if content:
            yield title, [(name, _value(value)) for name, value in sorted(content.items())]


def _value(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return number(value, 6)
    return value if isinstance(value, str) else json.dumps(value)
