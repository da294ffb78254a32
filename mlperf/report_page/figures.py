"""The main figures and the charts of a report."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from benchmark import (
    EXACT_MATCH,
    EXACT_MATCH_MIN,
    TASK_SCORES,
    TOKENS_MAX,
    TOKENS_MIN,
    TOKENS_PER_SAMPLE,
)
from mlperf.page import charts
from mlperf.page.axes import Axis
from mlperf.page.charts import Band, Chart, Interval, Rule, Series, Table
from mlperf.page.text import duration, number
from mlperf.report import percentile_key
from mlperf.report_page import latencies
from mlperf.result_folder import ResultFolder
from ref_dsinfer.rounding import ceil_div

if TYPE_CHECKING:
    import pandas as pd

POINTS = 120  # of a line over the run's time
PERCENTILES = (50, 90, 95, 97, 99, 99.9)
_NAMES = {"ttft": "Time to first token (TTFT)", "tpot": "Time per output token (TPOT)"}


@dataclass(frozen=True)
class Tile:
    """One of the figures that a report begins with."""

    name: str
    value: str
    note: str = ""


def tiles(folder: ResultFolder) -> list[Tile]:
    """The main figures of a finished run, each beside its limit."""
    figures = {**_grades(folder), **folder.figures}
    all_tiles = [
        Tile(name, number(figures[key], 5))
        for name, key in (("tokens/s", "tokens_per_second"), ("samples/s", "samples_per_second"))
        if key in figures
    ]
    for latency in ("ttft", "tpot"):
        value = figures.get(f"{latency}_p99_ms")
        if value is not None:
            limit = limit_ms(folder, latency)
            note = f"limit {number(limit)} ms" if limit else ""
            all_tiles.append(
                Tile(f"{latency.upper()}, 99th percentile", f"{number(value)} ms", note)
            )
    if figures.get("exact_match") is not None:
        note = f"at least {EXACT_MATCH_MIN:.4f} on the full data set"
        all_tiles.append(Tile("exact_match", f"{figures['exact_match']:.4f}", note))
    if figures.get("tokens_per_sample") is not None:
        note = f"{TOKENS_MIN:,.1f} to {TOKENS_MAX:,.1f} on the full data set"
        all_tiles.append(Tile("tokens per sample", f"{figures['tokens_per_sample']:,.1f}", note))
    if folder.timeline is not None and len(folder.timeline.requests):
        requests, ends = folder.timeline.requests, folder.timeline.seconds["finish_s"]
        open_ = int(requests["finish_s"].isna().sum())
        note = f"{open_:,} of them without an answer" if open_ else ""
        all_tiles.append(Tile("requests", f"{len(requests):,}", note))
        if len(ends):
            all_tiles.append(Tile("duration", duration(float(ends.max()))))
    return all_tiles


def _grades(folder: ResultFolder) -> dict[str, float]:
    """The figures of a performance run whose answers were graded later."""
    grading = folder.grading or {}
    values = {name: grading.get(name) for name in ("exact_match", "tokens_per_sample")}
    return {name: value for name, value in values.items() if isinstance(value, int | float)}


def limit_ms(folder: ResultFolder, latency: str) -> float | None:
    """The scenario's limit of the 99th percentile of ttft or tpot; None if it has none."""
    value = folder.log.values.get(f"requested_server_{latency}_latency") if folder.log else None
    scenario = folder.log.values.get("effective_scenario") if folder.log else None
    return value / 1e6 if scenario == "Server" and isinstance(value, int | float) else None


def over_time(folder: ResultFolder) -> list[Chart]:
    """Throughput, requests and KV cache over the run's time."""
    if folder.timeline is None or folder.timeline.seconds.empty:
        return []
    seconds = _merged(folder.timeline.seconds, _open(folder.timeline.requests, folder))
    times = seconds["arrival_s"].tolist()
    x = Axis.around("seconds since the start", [*times, float(seconds["finish_s"].max())])
    made = [_throughput(folder, seconds, x), _concurrency(seconds, x)]
    if seconds["cache_use"].notna().any():
        made.append(_cache(seconds, x))
    return made


def latency_charts(folder: ResultFolder) -> list[Chart]:
    """The distributions of TTFT and TPOT, with the scenario's limits."""
    if folder.timeline is None:
        return []
    requests = latencies.requests(folder.timeline)
    made = []
    for latency in ("ttft", "tpot"):
        values = [value for value in requests[f"{latency}_ms"] if math.isfinite(value)]
        if values:
            made.append(_latency(folder, latency, values))
    return made


def lengths(samples: "pd.DataFrame") -> Chart:
    """The answers' lengths, and the band in which their mean has to be."""
    tokens = samples["tokens"].astype(float)
    mean = float(tokens.mean())
    by_task = tokens.groupby(samples["task"])
    summary = (
        f"Mean {mean:,.1f} tokens, median {number(tokens.median())}, longest"
        f" {number(tokens.max())}. The mean has to be {TOKENS_PER_SAMPLE:,.1f} ± 10 % on the full"
        " data set."
    )
    made = charts.histogram(
        "Length of answers",
        summary,
        "tokens",
        tokens.tolist(),
        [Rule(mean, f"mean {mean:,.1f}")],
        Band(TOKENS_MIN, TOKENS_MAX, f"mean allowed: {TOKENS_MIN:,.1f} to {TOKENS_MAX:,.1f}"),
        "answers",
    )
    rows = [
        (
            task,
            f"{len(group):,}",
            f"{group.mean():,.1f}",
            number(group.median()),
            number(group.max()),
        )
        for task, group in (*by_task, ("all", tokens))
    ]
    table = Table(("task", "answers", "mean", "median", "longest"), rows)
    return Chart(made.title, summary, made.picture, table)


def accuracy(grading: dict[str, Any]) -> Chart | None:
    """The score of each task with its interval, beside the limit of all; None if they are damaged.

    `grading`: the graders' report.
    """
    try:
        scores = {
            task: (float(one["exact_match"]), *map(float, one["interval_95"]), one)
            for task, one in grading["tasks"].items()
        }
        rows = [
            (
                task,
                f"{one['rows']:,}",
                f"{one['right']:,}",
                f"{score:.2f}",
                f"{low:.2f} to {high:.2f}",
                number(TASK_SCORES.get(task, EXACT_MATCH)),
                *(f"{one[key]:,}" for key in ("no_answer", "truncated", "timeouts", "ungraded")),
            )
            for task, (score, low, high, one) in scores.items()
        ]
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    bars = [
        Interval(task, low, score, high, TASK_SCORES.get(task, EXACT_MATCH))
        for task, (score, low, high, _) in scores.items()
    ]
    summary = Markup(
        "Right answers in percent, with the 95 % interval of each score. The limit of {:.4f} is for"
        ' all tasks of the full data set; the <span class="swatch swatch-1"></span> ticks are the'
        " reference's scores."
    ).format(EXACT_MATCH_MIN)
    head = ("task", "rows", "right", "exact_match", "95 % interval", "reference", "no answer")
    return charts.intervals(
        "Accuracy by task",
        summary,
        Axis("percent", 0, 100),
        bars,
        Table((*head, "truncated", "timeouts", "not judged"), rows),
        [Rule(EXACT_MATCH_MIN, f"limit {EXACT_MATCH_MIN:.4f}", "limit")],
    )


def _latency(folder: ResultFolder, latency: str, values: Sequence[float]) -> Chart:
    import numpy as np

    limit = limit_ms(folder, latency)
    official = _official(folder, latency)
    measured = {share: float(np.percentile(values, share)) for share in PERCENTILES}
    p50, p99 = (official.get(share, measured[share]) for share in (50, 99))
    rules = [Rule(p50, f"p50 {number(p50)} ms"), Rule(p99, f"p99 {number(p99)} ms")]
    over = ""
    if limit is not None:
        rules.append(Rule(limit, f"limit of p99 {number(limit)} ms", "limit"))
        late = sum(value > limit for value in values)
        over = f" {late:,} of {len(values):,} requests are above the limit of {number(limit)} ms."
    source = "LoadGen's percentiles" if official else "Percentiles of the timeline"
    summary = f"{source}: p50 {number(p50)} ms, p99 {number(p99)} ms.{over}"
    made = charts.histogram(_NAMES[latency], summary, "ms", values, rules)
    rows = [
        (f"p{share:g}", number(official.get(share)), number(measured[share]))
        for share in PERCENTILES
    ]
    rows.append(("longest", "–", number(max(values))))
    table = Table(("percentile", "LoadGen, ms", "timeline, ms"), rows)
    return Chart(made.title, summary, made.picture, table)


def _official(folder: ResultFolder, latency: str) -> dict[float, float]:
    """LoadGen's percentiles in milliseconds; none of a run without figures."""
    if folder.log is None or not folder.figures:
        return {}
    values = {share: folder.log.values.get(percentile_key(latency, share)) for share in PERCENTILES}
    return {share: value / 1e6 for share, value in values.items() if isinstance(value, int | float)}


def _open(requests: "pd.DataFrame", folder: ResultFolder) -> "pd.Series":
    """How many requests are open at the start of each second of the timeline."""
    import numpy as np
    import pandas as pd

    assert folder.timeline is not None
    starts = folder.timeline.seconds["arrival_s"].to_numpy()
    begun = np.searchsorted(np.sort(requests["arrival_s"].to_numpy()), starts, "right")
    ends = np.sort(requests["finish_s"].dropna().to_numpy())
    return pd.Series(begun - np.searchsorted(ends, starts, "right"), dtype=float)


def _merged(seconds: "pd.DataFrame", open_: "pd.Series") -> "pd.DataFrame":
    """The seconds, merged to at most POINTS intervals: sums of tokens, means of the others.

    A last second that is shorter than half of one belongs to the one before: its rate says little.
    """
    size = ceil_div(len(seconds), POINTS)
    groups = [index // size for index in range(len(seconds))]
    spans: list[float] = (seconds["finish_s"] - seconds["arrival_s"]).tolist()
    if len(groups) > 1 and spans[-1] < 0.5:
        groups[-1] = groups[-2]
    merged = seconds.assign(open=open_).groupby(groups)
    return merged.agg(
        {
            "arrival_s": "min",
            "finish_s": "max",
            "tokens": "sum",
            **dict.fromkeys(("open", "running", "waiting", "cache_use"), "mean"),
            "preemptions": "max",
        }
    )


def _throughput(folder: ResultFolder, seconds: "pd.DataFrame", x: Axis) -> Chart:
    spans = seconds["finish_s"] - seconds["arrival_s"]
    rates = (seconds["tokens"] / spans.where(spans > 0)).tolist()
    mean = folder.figures.get("tokens_per_second")
    points = list(zip(seconds["arrival_s"], map(_known, rates), strict=True))
    known = [rate for rate in rates if math.isfinite(rate)]
    rules = [] if mean is None else [Rule(mean, f"run {number(mean)}", across="y")]
    summary = f"Tokens received each second: highest {number(max(known, default=None))}"
    summary += f"; of the whole run {number(mean, 5)} tokens/s." if mean is not None else "."
    rows = [(number(at), number(rate)) for at, rate in points]
    return charts.lines(
        "Throughput",
        summary,
        x,
        Axis.around("tokens/s", [*known, mean or 0]),
        [Series("tokens/s", points)],
        Table(("second", "tokens/s"), rows, frozenset()),
        rules,
    )


def _concurrency(seconds: "pd.DataFrame", x: Axis) -> Chart:
    names = ["open", *(one for one in ("running", "waiting") if seconds[one].notna().any())]
    titles = {
        "open": "open",
        "running": "running in the engine",
        "waiting": "waiting in the engine",
    }
    times = seconds["arrival_s"].tolist()
    columns = {name: [_known(value) for value in seconds[name]] for name in names}
    most = {
        name: max((one for one in column if one is not None), default=None)
        for name, column in columns.items()
    }
    summary = (
        "Requests at the same time: "
        + ", ".join(f"at most {number(most[name])} {titles[name]}" for name in names)
        + "."
    )
    rows = [tuple(map(number, values)) for values in zip(times, *columns.values(), strict=True)]
    return charts.lines(
        "Concurrency",
        summary,
        x,
        Axis.around("requests", [value or 0 for value in most.values()]),
        [Series(titles[name], list(zip(times, columns[name], strict=True))) for name in names],
        Table(("second", *names), rows, frozenset()),
    )


def _cache(seconds: "pd.DataFrame", x: Axis) -> Chart:
    times = seconds["arrival_s"].tolist()
    shares = [_known(100 * value) for value in seconds["cache_use"]]
    preemptions = [_known(value) for value in seconds["preemptions"]]
    last = max((value for value in preemptions if value is not None), default=None)
    most = max(value for value in shares if value is not None)
    summary = f"KV cache in use: at most {number(most)} %. Preemptions: {number(last)}."
    rows = [tuple(map(number, values)) for values in zip(times, shares, preemptions, strict=True)]
    return charts.lines(
        "KV cache",
        summary,
        x,
        Axis("percent", 0, 100),
        [Series("cache in use", list(zip(times, shares, strict=True)))],
        Table(("second", "in use, %", "preemptions so far"), rows, frozenset()),
    )


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
