"""The figures of two runs side by side, each with what tells a difference from noise."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlperf.compare import noise
from mlperf.compare.noise import Interval
from mlperf.compare.runs import Run
from mlperf.compare.samples import Samples
from mlperf.report_page import latencies

if TYPE_CHECKING:
    import numpy as np

    from data.timeline import Timeline

LABELS = {  # of the figures in run.json, in the order of the table
    "samples_per_second": "samples/s",
    "tokens_per_second": "tokens/s",
    "ttft_p50_ms": "TTFT p50 ms",
    "ttft_p99_ms": "TTFT p99 ms",
    "tpot_p50_ms": "TPOT p50 ms",
    "tpot_p99_ms": "TPOT p99 ms",
    "exact_match": "exact_match",
    "tokens_per_sample": "tokens/sample",
}
BOOTSTRAP = "bootstrap of the"


@dataclass(frozen=True)
class Figure:
    """A figure of two runs; None where a run does not have it."""

    name: str  # with its unit
    first: float | None
    second: float | None
    interval: Interval | None = None  # of the ratio
    p: float | None = None  # of an exact test, instead of an interval
    method: str = ""  # how noise was told, or why it was not

    @property
    def label(self) -> str:
        return LABELS.get(self.name, self.name)

    @property
    def ratio(self) -> float | None:
        """The second to the first."""
        if self.second is None or not self.first:
            return None
        return self.second / self.first

    @property
    def beyond_noise(self) -> bool | None:
        """Whether the difference is more than chance explains; None if that can't be told."""
        if self.p is not None:
            return self.p < noise.ALPHA
        return self.interval.beyond_noise if self.interval else None


def compare_figures(
    first: Run, second: Run, samples: Samples | None, unlike: str | None
) -> tuple[Figure, ...]:
    """All figures that one of two runs has. `unlike`: why these do not measure the same."""
    names = [name for name in LABELS if name in first.figures or name in second.figures]
    figures = []
    for name in names:
        values = first.figures.get(name), second.figures.get(name)
        if None in values:
            figures.append(Figure(name, *values))
        elif unlike:
            figures.append(Figure(name, *values, method=f"not told: {unlike}"))
        else:
            figures.append(_judged(name, values, first, second, samples))
    return tuple(figures)


def _judged(
    name: str,
    values: tuple[float | None, float | None],
    first: Run,
    second: Run,
    samples: Samples | None,
) -> Figure:
    if name == "exact_match":
        if samples is None or samples.grades is None:
            return Figure(name, *values, method="not told: needs the grades of both")
        return Figure(name, *values, p=samples.grades.p, method="McNemar's exact test")
    if name == "tokens_per_sample":
        interval = noise.of_pairs(*samples.lengths) if samples else None
        method = f"{BOOTSTRAP} samples" if interval else "not told: too few samples"
        return Figure(name, *values, interval, method=method)
    for run in (first, second):
        if run.result.timeline is None:
            return Figure(name, *values, method=f"not told: {run.name} has no timeline")
    assert first.result.timeline
    assert second.result.timeline
    statistic: noise.Statistic = noise.mean
    least = noise.FEWEST
    if name.endswith("_ms"):
        percent = float(name.split("_p")[1].removesuffix("_ms"))
        statistic, least = noise.percentile(percent), noise.fewest(percent)
    one, two = (
        series(timeline, name) for timeline in (first.result.timeline, second.result.timeline)
    )
    interval = noise.of_series(one, two, statistic, least)
    unit = "answers" if name.endswith("_ms") else "seconds"
    if interval is None:
        few = min(len(one), len(two))
        return Figure(name, *values, method=f"not told: {few} {unit}, fewer than {least}")
    return Figure(name, *values, interval, method=f"{BOOTSTRAP} {unit}, in blocks")


def series(timeline: "Timeline", name: str) -> "np.ndarray":
    """What a figure is the mean or a percentile of, in the order of time: a value for each whole
    second, or for each answer."""
    import numpy as np

    requests, seconds = timeline.requests, timeline.seconds
    ends = requests["finish_s"].dropna().to_numpy()
    start = requests["arrival_s"].min() if len(requests) else 0.0
    if name == "tokens_per_second":
        whole = seconds["finish_s"] - seconds["arrival_s"] > 1 / 2  # the last one is shorter
        counts = seconds.loc[whole & (seconds["finish_s"] > start), "tokens"]
        return counts.to_numpy(float)
    if name == "samples_per_second":
        edges = np.arange(start, ends.max() if len(ends) else start)
        return np.histogram(ends, edges)[0].astype(float) if len(edges) > 1 else np.array([])
    column = f"{name.partition('_')[0]}_ms"
    return latencies.requests(timeline)[column].dropna().to_numpy(float)
