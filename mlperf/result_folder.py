"""A run's folder, read as far as it can be: what is damaged or contradicts itself is a fault."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from data.recorder import TIMELINE
from errors import InputFileError, LoadGenError
from grading.evaluate import REPORT_ENDING
from mlperf import compliance, report
from mlperf.report import DetailLog
from mlperf.run import RECORD, RESULTS
from mlperf.state import STATE

if TYPE_CHECKING:
    from data.timeline import Timeline

T = TypeVar("T")

# The types of what is in run.json and state.json; a value may also be null
_RECORD: dict[str, type] = {
    **dict.fromkeys(("command", "mode", "test", "backend", "loadgen_validity", "answers"), str),
    **dict.fromkeys(("figures", "settings", "versions", "engine", "machine", "prefix_cache"), dict),
    **dict.fromkeys(("resumed", "process"), dict),
    "not_submittable_because": list,
}
_STATE: dict[str, type] = {
    **dict.fromkeys(("state", "host", "started", "updated", "error", "model", "data_set"), str),
    **dict.fromkeys(("finished", "of", "pid", "skipped_rows"), int),
}
_REQUIRED = ("mode", "test", "figures", "state", "started", "updated")
_CLOSE = 1e-6  # relative difference of two figures that are the same


@dataclass(frozen=True)
class ResultFolder:
    """What a run has left; None: there is no such file, it is damaged or an earlier run's."""

    path: Path
    record: dict[str, Any] | None  # run.json
    state: dict[str, Any] | None  # state.json
    log: DetailLog | None  # LoadGen's
    timeline: "Timeline | None"
    grading: dict[str, Any] | None  # results_report.json
    engine: dict[str, Any] | None  # engine.json
    faults: list[str] = field(default_factory=list)  # what is damaged, missing or contradictory

    @property
    def finished(self) -> bool:
        """Whether the folder has the figures of the run that its state is of.

        A run that fails early may leave the files of an earlier one.
        """
        if self.record is None:
            return False
        process = self.record.get("process")
        return (
            self.state is None
            or process is None
            or all(self.state.get(key) == value for key, value in process.items())
        )

    @property
    def figures(self) -> dict[str, float | None]:
        """The figures of run.json; empty if the run did not finish."""
        return self.record["figures"] if self.record is not None and self.finished else {}


def read(path: Path) -> ResultFolder:
    """Read a result folder. Raises: InputFileError if there is no run in it."""
    record_path, state_path = path / RECORD, path / STATE
    if not (record_path.exists() or state_path.exists()):
        raise InputFileError(
            f"{path}: no run in it (neither {RECORD} nor {STATE}): pass the folder that run_mlperf"
            " names as 'files', such as mlperf_results/offline/performance"
        )
    faults: list[str] = []

    def attempt(load: Callable[[Path], T], file: Path, required: bool = False) -> T | None:
        if not (required or file.exists()):
            return None
        try:
            return load(file)
        except (InputFileError, LoadGenError) as error:
            faults.append(str(error))
            return None

    record = attempt(read_record, record_path)
    state = attempt(_read_state, state_path)
    log = attempt(report.read_detail, _logs(path) / report.DETAIL_LOG, record is not None)
    grading = attempt(_read_object, path / f"{RESULTS}{REPORT_ENDING}")
    timeline = attempt(_read_timeline, path / TIMELINE)
    if timeline is not None and state is not None and _is_earlier(timeline, state):
        faults.append(f"{path / TIMELINE}: it is an earlier run's")
        timeline = None
    engine = attempt(_read_object, path / "engine.json")
    faults += _contradictions(record, log, grading)
    folder = ResultFolder(path, record, state, log, timeline, grading, engine, faults)
    if record is not None and not folder.finished:
        return ResultFolder(path, record, state, None, None, None, None, faults)
    return folder


def read_record(path: Path) -> dict[str, Any]:
    """The content of a run.json. Raises: InputFileError if it can't be read or is none."""
    try:
        record = _checked(path, _RECORD)
        figures = record["figures"].values()
        if not all(value is None or type(value) in (int, float) for value in figures):
            raise ValueError("figures that are not numbers")
        if not all(type(value) is int for value in (record.get("resumed") or {}).values()):
            raise ValueError("resumed samples that are not numbers")
        record["not_submittable_because"] = [
            str(reason) for reason in record.get("not_submittable_because") or ()
        ]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputFileError(f"{path}: not a run.json that run_mlperf wrote") from error
    return record


def _read_state(path: Path) -> dict[str, Any]:
    try:
        state = _checked(path, _STATE)
        for name in ("started", "updated"):
            datetime.fromisoformat(state[name])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputFileError(f"{path}: not a state.json that run_mlperf wrote") from error
    return state


def _read_object(path: Path) -> dict[str, Any]:
    try:
        return _checked(path, {})
    except (ValueError, RecursionError) as error:
        raise InputFileError(f"{path}: damaged: not a JSON object") from error


def _read_timeline(path: Path) -> "Timeline":
    from data.timeline import read_timeline

    return read_timeline(path)


def _is_earlier(timeline: "Timeline", state: dict[str, Any]) -> bool:
    """Whether a timeline began before the run that the state is of."""
    return timeline.metadata.start < datetime.fromisoformat(state["started"]).timestamp()


def _checked(path: Path, types: dict[str, type]) -> dict[str, Any]:
    """A JSON object whose values have these types.

    Raises: InputFileError if it can't be read; ValueError, KeyError, RecursionError if it is
    something else.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputFileError(f"{path}: can't be read: {error.strerror}") from error
    value = json.loads(content)
    if not isinstance(value, dict):
        raise ValueError("not an object")
    for name, type_ in types.items():
        item = value[name] if name in _REQUIRED else value.get(name)
        if not isinstance(item, type_) and (item is not None or name in _REQUIRED):
            raise ValueError(f"{name} is {type(item).__name__}")
    return value


def _logs(path: Path) -> Path:
    """Where LoadGen's logs are: of a compliance run in a folder of their own."""
    within = path / compliance.LOGS
    return within if (within / report.DETAIL_LOG).exists() else path


def _contradictions(
    record: dict[str, Any] | None, log: DetailLog | None, grading: dict[str, Any] | None
) -> list[str]:
    """Figures of run.json that LoadGen's log or the graders' report has otherwise."""
    if record is None:
        return []
    sources: list[tuple[str, dict[str, Any]]] = []
    if log is not None and record["test"] != "accuracy":
        sources.append(("LoadGen's log", report.performance_figures(log)))
    if grading is not None:
        sources.append((f"{RESULTS}{REPORT_ENDING}", grading))
    return [
        f"{RECORD} says that {name} is {value}, but {source} says {figures[name]}"
        for source, figures in sources
        for name, value in record["figures"].items()
        if name in figures and not _same(value, figures[name])
    ]


def _same(value: float | None, other: Any) -> bool:
    """Whether two figures are the same; JSON has none for infinity, where run.json has null."""
    if not isinstance(other, int | float):
        return False
    if value is None or not math.isfinite(other):
        return value is None and not math.isfinite(other)
    return math.isclose(value, other, rel_tol=_CLOSE)
