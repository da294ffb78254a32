"""A timeline as a trace: JSON that ui.perfetto.dev and chrome://tracing show.

Every request is a slice, and in it one from its arrival to its first token (it waits, and its
prompt is processed) and one for the tokens after that. The engine's numbers are counters.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.timeline import Timeline, read_timeline
from ref_dsinfer.files import write_whole

if TYPE_CHECKING:
    import pandas as pd

TRACE = "trace.json"
PROCESS = 1
PREFILL, DECODE = "queue and prefill", "decode"
COUNTERS = ("running", "waiting", "cache_use", "preemptions")
Event = dict[str, Any]


def add_option(parser: argparse.ArgumentParser) -> None:
    """The option of a run."""
    parser.add_argument(
        "--trace",
        action="store_true",
        help=f"write {TRACE} too, beside the timeline: the run for ui.perfetto.dev",
    )


def write_trace(timeline_path: Path, path: Path) -> None:
    """Write the trace of a timeline's file. Raises: as `read_timeline`; OutputError."""
    timeline = read_timeline(timeline_path)

    def write(partial: Path) -> None:
        with partial.open("w") as file:
            file.write('{"displayTimeUnit": "ms", "traceEvents": [\n')
            for number, event in enumerate(events(timeline)):
                file.write(f"{',' if number else ' '}{json.dumps(event)}\n")
            file.write("]}\n")

    write_whole(path, write)


def events(timeline: Timeline) -> Iterator[Event]:
    """The trace's events. Requests that the run's end has cut off end with it."""
    about = timeline.metadata
    name = " ".join(filter(None, (about.backend, about.scenario, about.mode)))
    yield {"ph": "M", "name": "process_name", "pid": PROCESS, "args": {"name": name}}
    end_s = float(timeline.seconds["finish_s"].max())
    for row in _rows(timeline.requests):
        yield from _request(row, end_s)
    for row in _rows(timeline.seconds):
        length_s = row["finish_s"] - row["arrival_s"]
        counts = {"tokens/s": row["tokens"] / length_s if length_s else 0.0}
        counts |= {name: row[name] for name in COUNTERS if row[name] == row[name]}  # not NaN
        for counter, value in counts.items():
            yield _event("C", counter, row["arrival_s"], args={counter: value})


def _rows(frame: "pd.DataFrame") -> list[dict[str, Any]]:
    return frame.to_dict("records")  # type: ignore[return-value]


def _request(row: dict[str, Any], end_s: float) -> Iterator[Event]:
    known = {name: value for name, value in row.items() if value == value and value is not None}
    name, arrival_s, finish_s = (
        f"row {row['sample_index']}",
        row["arrival_s"],
        known.get("finish_s", end_s),
    )
    same = {"cat": "request", "id": f"{row['request_id']:#x}"}
    yield _event("b", name, arrival_s, args=known, **same)
    if "first_token_s" in known:
        first_s = known["first_token_s"]
        for part, begin_s, until_s in ((PREFILL, arrival_s, first_s), (DECODE, first_s, finish_s)):
            yield _event("b", part, begin_s, **same)
            yield _event("e", part, until_s, **same)
    yield _event("e", name, finish_s, **same)


def _event(phase: str, name: str, at_s: float, **more: Any) -> Event:
    return {"ph": phase, "name": name, "pid": PROCESS, "tid": PROCESS, "ts": at_s * 1e6, **more}
