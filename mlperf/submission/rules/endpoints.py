"""Rules on results of the endpoints client, which some rounds allow instead of LoadGen's.

A value is looked for in result_summary.json, then in config.yaml. Times are in nanoseconds, as the
official checker reads them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmark import ROWS
from mlperf.settings import MODES, benchmark
from mlperf.submission.findings import Fault
from mlperf.submission.rules.accuracy import score_faults
from mlperf.submission.rules.description import read_yaml
from mlperf.submission.tree import (
    ENDPOINTS_ACCURACY,
    ENDPOINTS_SUMMARY,
    Result,
    line_with,
    read_json,
)

_NS = 1_000_000  # in a millisecond
_SEEDS = {
    "sample_index_rng_seed": (
        *("effective_sample_index_rng_seed", "settings.runtime.dataloader_random_seed"),
    ),
    "schedule_rng_seed": (
        *("effective_schedule_rng_seed", "settings.runtime.scheduler_random_seed"),
    ),
}
_MIN_DURATION = ("min_duration_ms", "settings.runtime.min_duration_ms")
_FAILED = ("result.failed", "n_samples_failed")


def allowed(result: Result) -> Iterator[Fault]:
    """The round allows results of the endpoints client."""
    round_ = result.system.round
    if not round_.endpoints:
        yield Fault(
            result.folder, f"round {round_.name} does not allow results of the endpoints client"
        )


def readable(result: Result) -> Iterator[Fault]:
    """The endpoints client's files are JSON and YAML."""
    for name in (ENDPOINTS_SUMMARY, ENDPOINTS_ACCURACY):
        path = result.folder / name
        if path.is_file() and read_json(path) is None:
            yield Fault(path, "not a JSON object")
    if result.config.is_file() and not isinstance(read_yaml(result.config), dict):
        yield Fault(result.config, "not a YAML mapping")


def scenario(result: Result) -> Iterator[Fault]:
    """The run is of the folder's scenario."""
    kind = str(_value(result, "type")).lower()
    kinds = ("offline",) if result.mode == "offline" else ("online", str(result.mode))
    if result.mode and kind not in kinds:
        yield Fault(
            result.config,
            f"type is {kind!r}, not {' or '.join(map(repr, kinds))} as the folder says",
            line_with(result.config, "type:"),
        )


def settings(result: Result) -> Iterator[Fault]:
    """Seeds are the round's, and the run takes ten minutes or more."""
    for name, keys in _SEEDS.items():
        required = result.system.round.seeds[name]
        if (value := _value(result, *keys)) != required:
            yield _fault(result, keys, f"{name} is {value}, not {required}")
    if result.mode:
        least = benchmark(MODES[result.mode])["min_duration"]
        value = _value(result, *_MIN_DURATION)
        if not isinstance(value, int | float) or value < least:
            yield _fault(result, _MIN_DURATION, f"min_duration_ms is {value}, less than {least}")


def failures(result: Result) -> Iterator[Fault]:
    """The run is complete, and no request failed."""
    if failed := _value(result, *_FAILED):
        yield _fault(result, _FAILED, f"{failed} requests failed")
    for name in (ENDPOINTS_SUMMARY, ENDPOINTS_ACCURACY):
        path = result.folder / name
        content = read_json(path) or {}
        scores = content.get("accuracy_scores")
        for part in (content, *(scores if isinstance(scores, list) else [])):
            if isinstance(part, dict) and part.get("complete") is False:
                yield Fault(path, "complete is false", line_with(path, '"complete": false'))


def latencies(result: Result) -> Iterator[Fault]:
    """TTFT and TPOT are below the limits of the scenario."""
    if result.mode in (None, "offline"):
        return
    limits = benchmark(MODES[result.mode or ""])
    for name in ("ttft", "tpot"):
        percentiles = f"{name}.early_stopping_percentiles"
        value = _value(result, f"{percentiles}.99.0", f"{percentiles}.99")
        limit = limits[f"{name}_latency"]
        if not isinstance(value, int | float) or not value < limit * _NS:
            shown = f"{value / _NS:.2f} ms" if isinstance(value, int | float) else repr(value)
            yield _fault(
                *(result, (name,)),
                f"99th percentile of {name.upper()} is {shown}: {result.scenario} must stay below"
                f" {limit} ms",
            )


def score(result: Result) -> Iterator[Fault]:
    """The score is of all rows, and within its limits."""
    path = result.folder / ENDPOINTS_ACCURACY
    content = read_json(path)
    if content is None:
        return
    scores = content.get("accuracy_scores")
    entries = scores if isinstance(scores, list) else []
    parts = [part for entry in entries if (part := _part(entry))]
    if not parts or len(parts) != len(entries):
        yield Fault(path, "accuracy_scores must list scores, each with score and total_samples")
        return
    rows = sum(part.rows for part in parts)
    if rows != ROWS:
        yield Fault(path, f"the scores are of {rows} rows, not of {ROWS}")
        return
    figures = {"exact_match": sum(part.score * part.rows for part in parts) / rows}
    lengths = [part.tokens * part.rows for part in parts if part.tokens is not None]
    if len(lengths) == len(parts):
        figures["tokens_per_sample"] = sum(lengths) / rows
    yield from score_faults(path, figures, "error" if result.system.closed else "note")


@dataclass(frozen=True)
class _Part:
    """The score of a part of the data set."""

    score: float  # percent
    rows: int
    tokens: float | None  # per sample


def _part(entry: Any) -> _Part | None:
    """A part as accuracy_results.json has it; None if score or number of rows is missing."""
    if not isinstance(entry, dict):
        return None
    value, rows = entry.get("score"), entry.get("total_samples")
    if rows is None and isinstance(entry.get("response_counts"), dict):
        rows = entry["response_counts"].get("issued")
    if isinstance(value, dict):
        names = ("exact_match", "score", "accuracy")
        value = next((value[name] for name in names if name in value), None)
    if not isinstance(value, int | float) or not isinstance(rows, int):
        return None
    tokens = _nested(entry, ("output_sequence_lengths", "avg"))
    return _Part(float(value), rows, tokens if isinstance(tokens, int | float) else None)


def _value(result: Result, *keys: str) -> Any:
    """The first of several keys, with dots between levels, that a file has; else None."""
    sources = (read_json(result.folder / ENDPOINTS_SUMMARY), read_yaml(result.config))
    for source in sources:
        for key in keys:
            if (value := _nested(source, key.split("."))) is not None:
                return value
    return None


def _nested(node: Any, parts: Sequence[str]) -> Any:
    """A value by the parts of its key; a part of the file may have dots itself, such as 99.0."""
    if not parts:
        return node
    if not isinstance(node, dict):
        return None
    for end in range(len(parts), 0, -1):
        name = ".".join(parts[:end])
        if name in node and (value := _nested(node[name], parts[end:])) is not None:
            return value
    return None


def _fault(result: Result, keys: Sequence[str], message: str) -> Fault:
    """A fault at the line that has a key's last part, in the file that has it."""
    for path in (Path(result.folder, ENDPOINTS_SUMMARY), result.config):
        for key in keys:
            if line := line_with(path, key.rpartition(".")[2]):
                return Fault(path, message, line)
    return Fault(result.config, message)
