"""Rules on LoadGen's performance log, and on the settings that it records."""

import math
from collections.abc import Iterator
from typing import Any

from benchmark import ROWS
from errors import LoadGenError
from mlperf.report import DETAIL_LOG, DetailLog, percentile_key, performance_reasons
from mlperf.settings import MODES, benchmark, read_user_conf
from mlperf.submission.findings import Fault, Level
from mlperf.submission.tree import USER_CONF, Result

RATE_DIGITS = 1e-4  # LoadGen logs a rate with six digits
_NS = 1_000_000  # in a millisecond
# The key of LoadGen's log for each setting of mlperf.conf, and the factor from the file's unit
_LOGGED: dict[str, tuple[str, float]] = {
    "performance_sample_count_override": ("effective_performance_sample_count", 1),
    "sample_concatenate_permutation": ("effective_sample_concatenate_permutation", 1),
    "use_token_latencies": ("requested_use_token_latencies", 1),
    "min_duration": ("effective_min_duration_ms", 1),
    "max_duration": ("effective_max_duration_ms", 1),
    "min_query_count": ("effective_min_query_count", 1),
    "max_query_count": ("effective_max_query_count", 1),
    "target_latency": ("effective_target_latency_ns", _NS),
    "target_latency_percentile": ("effective_target_latency_percentile", 0.01),
    "ttft_latency": ("requested_server_ttft_latency", _NS),
    "tpot_latency": ("requested_server_tpot_latency", _NS),
}
_UPPER_LIMITS = ("ttft_latency", "tpot_latency")


def test(result: Result) -> Iterator[Fault]:
    """Each log is of the folder's test and scenario, without compliance settings."""
    logs = (
        (result.performance, result.performance_log, "PerformanceOnly"),
        (result.accuracy, result.accuracy_folder / DETAIL_LOG, "AccuracyOnly"),
    )
    for log, path, test_mode in logs:
        if log is None:
            continue
        yield from _unequal(result, log, "effective_test_mode", test_mode, path)
        if result.mode:
            scenario = MODES[result.mode].scenario
            yield from _unequal(result, log, "effective_scenario", scenario, path)
    for key in ("issue_unique", "issue_same"):
        if log := result.performance:
            key = f"effective_performance_{key}"
            if log.values.get(key):
                yield _fault(result, key, f"{key} is set: this is a compliance run")


def valid(result: Result) -> Iterator[Fault]:
    """LoadGen calls the performance run VALID."""
    if log := result.performance:
        for reason in performance_reasons(log):
            yield _fault(result, "result_validity", reason)


def errors(result: Result) -> Iterator[Fault]:
    """LoadGen logged no errors, in no run."""
    logs = (
        (result.performance, result.performance_log),
        (result.accuracy, result.accuracy_folder / DETAIL_LOG),
    )
    for log, path in logs:
        for text, line in (log.errors if log else {}).items():
            yield Fault(path, f"LoadGen logged an error: {text}", line)


def seeds(result: Result) -> Iterator[Fault]:
    """The performance run has the round's seeds."""
    round_ = result.system.round
    if log := result.performance:
        for name, required in round_.seeds.items():
            key = f"effective_{name}"
            if log.values.get(key) != required:
                yield _fault(
                    *(result, key),
                    f"{key} is {log.values.get(key)}, not {required}, round {round_.name}'s",
                )


def settings(result: Result) -> Iterator[Fault]:
    """The performance run has the settings of mlperf.conf."""
    log = result.performance
    if log is None or result.mode is None:
        return
    for name, number in benchmark(MODES[result.mode]).items():
        if name not in _LOGGED:
            continue  # the seeds, which depend on the round
        key, factor = _LOGGED[name]
        if name == "min_query_count" and result.mode == "offline":
            key = "effective_samples_per_query"  # there is one query
        value, required = _number(log, key), number * factor
        lower = name.startswith("min_") or name == "performance_sample_count_override"
        if value is None:
            yield _fault(result, key, f"{key} is {log.values.get(key)!r}, not a number")
        elif lower and value < required:
            yield _fault(result, key, f"{key} is {value:.15g}, less than {required:.15g}")
        elif name in _UPPER_LIMITS and value > required:
            yield _fault(result, key, f"{key} is {value:.15g}, more than {required:.15g}")
        elif not lower and name not in _UPPER_LIMITS and not math.isclose(value, required):
            yield _fault(result, key, f"{key} is {value:.15g}, not {required:.15g}")


def latencies(result: Result) -> Iterator[Fault]:
    """TTFT and TPOT are below the limits of the scenario, and early stopping was met."""
    log = result.performance
    if log is None or result.mode in (None, "offline"):
        return
    if not log.values.get("early_stopping_met"):
        yield _fault(
            *(result, "early_stopping_met"),
            "early stopping's condition was not met: too few queries for these latencies",
        )
    limits = benchmark(MODES[result.mode or ""])
    for latency in ("ttft", "tpot"):
        name, key = latency.upper(), percentile_key(latency, 99)
        value, limit = _number(log, key), limits[f"{latency}_latency"]
        if value is None:
            message = f"no 99th percentile of {name}: {key} is {log.values.get(key)!r}"
            yield _fault(result, key, message)
        elif not value < limit * _NS:
            yield _fault(
                *(result, key),
                f"99th percentile of {name} is {value / _NS:.2f} ms: {result.scenario} must stay"
                f" below {limit} ms",
            )


def rows(result: Result) -> Iterator[Fault]:
    """Both runs use all rows of the data set."""
    keys = ("effective_accuracy_sample_count", "qsl_reported_total_count")
    runs = (
        (result.performance, result.performance_log, keys[1:]),
        (result.accuracy, result.accuracy_folder / DETAIL_LOG, keys),
    )
    for log, path, names in runs:
        if log is None:
            continue
        for key in names:
            if (value := log.values.get(key)) != ROWS:
                message = f"{key} is {value}, not {ROWS}, the rows of the data set"
                yield Fault(path, message, log.lines.get(key))


def user_conf(result: Result) -> Iterator[Fault]:
    """user.conf is the one that the performance run had: it sets the run's target rate."""
    path = result.folder / USER_CONF
    if result.mode is None or not path.is_file() or not path.stat().st_size:
        return
    mode = MODES[result.mode]
    try:
        values = read_user_conf(path).settings(mode.model, mode.scenario)
    except LoadGenError as error:
        # other harnesses' files have lines that LoadGen ignores; ours are checked before each run
        level: Level = "error" if result.runs else "note"
        yield Fault(path, str(error).removeprefix(f"{path}: "), level=level)
        return
    rate = values.get(mode.rate)
    if rate is None:
        yield Fault(
            path, f"no target rate: expected a line '{mode.model}.{mode.scenario}.target_qps = …'"
        )
    elif log := result.performance:
        used = _number(log, "effective_target_qps")
        if used is None or not math.isclose(used, rate, rel_tol=RATE_DIGITS):
            yield Fault(
                path,
                f"its target rate is {rate:g} samples/s, but the performance run had {used}: use"
                " the file of the run",
            )


def _unequal(result: Result, log: DetailLog, key: str, required: str, path: Any) -> Iterator[Fault]:
    if (value := log.values.get(key)) != required:
        yield Fault(
            path, f"{key} is {value}, not {required} as the folder says", log.lines.get(key)
        )


def _fault(result: Result, key: str, message: str) -> Fault:
    """A fault in the performance log, at the line of a key."""
    log = result.performance
    return Fault(result.performance_log, message, log.lines.get(key) if log else None)


def _number(log: DetailLog, key: str) -> float | None:
    """A number in a log, or None if there is none."""
    value = log.values.get(key)
    return value if isinstance(value, int | float) and not math.isnan(value) else None
