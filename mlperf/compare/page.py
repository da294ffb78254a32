"""A comparison as a page, with all samples."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mlperf.compare.figures import LABELS, series
from mlperf.compare.noise import LEVEL
from mlperf.compare.pair import Pair
from mlperf.compare.runs import Run, differences
from mlperf.compare.samples import Samples
from mlperf.compare.table import VERDICTS, summary
from mlperf.page.axes import Axis
from mlperf.page.charts import Chart, Interval, Rule, Series, Table, intervals, lines
from mlperf.page.document import HERE as PAGE
from mlperf.page.document import document
from mlperf.page.text import number
from ref_dsinfer.files import write_text
from ref_dsinfer.rounding import ceil_div

TEMPLATE = Path(__file__).with_name("page.html")
SCRIPT = Path(__file__).with_name("search.js")
POINTS = 300  # of a line, at most: more than a picture shows


@dataclass(frozen=True)
class Section:
    """What a page shows of two runs."""

    pair: Pair
    figures: Table
    ratios: Chart | None  # None if no ratio has an interval
    summary: list[str]  # of the samples
    differences: Table | None
    flips: Table | None


def write(runs: Sequence[Run], pairs: Sequence[Pair], path: Path) -> None:
    """Write the page. Raises: OutputError."""
    rows = differences(list(runs))
    names = [run.name for run in runs]
    head, texts = ["setting", *names], frozenset(range(len(names) + 1))
    shared = [[name, *map(str, values)] for name, values in rows.items() if None not in values]
    own = [
        [name, *("–" if value is None else value for value in values)]
        for name, values in rows.items()
        if None in values
    ]
    overview = [[f"{run.name}: {run.title}", run.verdict.word, str(run.folder)] for run in runs]
    values = {
        "runs": runs,
        "tone": "bad" if any(run.verdict.tone == "bad" for run in runs) else "doubt",
        "overview": Table(["run", "verdict", "folder"], overview, frozenset(range(3))),
        "figures": _figures(runs) if len(runs) > 2 else None,
        "sections": [_section(pair) for pair in pairs],
        "throughput": _throughput(runs),
        "settings": Table(head, shared, texts),
        "own": Table(head, own, texts),
    }
    title = f"Runs compared: {', '.join(run.title for run in runs)}"
    write_text(path, document(TEMPLATE, title, values, [PAGE / "data.js", SCRIPT]))


def _figures(runs: Sequence[Run]) -> Table:
    """The figures of all runs side by side."""
    rows = [
        [label, *(number(run.figures.get(name)) for run in runs)]
        for name, label in LABELS.items()
        if any(name in run.figures for run in runs)
    ]
    return Table(["figure", *(run.name for run in runs)], rows)


def _section(pair: Pair) -> Section:
    first, second = pair.first.name, pair.second.name
    figures = Table(
        ["figure", first, second, f"{second} / {first}", "95 %", "", "method"],
        [
            [
                figure.label,
                number(figure.first),
                number(figure.second),
                number(figure.ratio),
                _range(figure.interval.low, figure.interval.high)
                if figure.interval
                else ("" if figure.p is None else f"p = {number(figure.p, 3)}"),
                VERDICTS[figure.beyond_noise],
                figure.method,
            ]
            for figure in pair.figures
        ],
        frozenset({0, 5, 6}),
    )
    samples = pair.samples
    return Section(
        pair,
        figures,
        _ratios(pair),
        summary(samples) if samples else [],
        _differences(pair, samples) if samples and samples.differences else None,
        _flips(pair, samples) if samples and samples.grades and samples.grades.flips else None,
    )


def _ratios(pair: Pair) -> Chart | None:
    """The ratios of two runs' figures with their intervals."""
    rows = [
        Interval(figure.label, figure.interval.low, figure.ratio, figure.interval.high)
        for figure in pair.figures
        if figure.interval and figure.ratio is not None and figure.interval.high < float("inf")
    ]
    if not rows:
        return None
    beyond = [figure.label for figure in pair.figures if figure.beyond_noise]
    first, second = pair.first.name, pair.second.name
    words = f"Beyond noise: {', '.join(beyond)}." if beyond else "No difference is beyond noise."
    values = [value for row in rows for value in (row.low, row.high)]
    axis = Axis.around(f"{second} / {first}", [*values, 1.0], logarithmic=True)
    table = Table(
        ["figure", "ratio", f"{LEVEL:.0%} of resamples"],
        [[row.name, number(row.value), _range(row.low, row.high)] for row in rows],
    )
    title = f"Figures of {second} relative to {first}"
    return intervals(title, words, axis, rows, table, [Rule(1.0, f"as {first}")])


def _throughput(runs: Sequence[Run]) -> Chart | None:
    """Tokens of each second of the runs that have a timeline."""
    curves = []
    for run in runs:
        if run.result.timeline is not None:
            counts = series(run.result.timeline, "tokens_per_second")
            size = max(ceil_div(len(counts), POINTS), 1)
            means = [counts[at : at + size].mean() for at in range(0, len(counts), size)]
            curves.append((run, [((at + 0.5) * size, mean) for at, mean in enumerate(means)]))
    if not any(points for _, points in curves):
        return None
    places = [point for _, points in curves for point in points]
    rows = [
        [run.name, number(second, 3), number(tokens)]
        for run, points in curves
        for second, tokens in points
    ]
    return lines(
        "Throughput over time",
        "From the first request on.",
        Axis.around("seconds", [x for x, _ in places]),
        Axis.around(LABELS["tokens_per_second"], [y for _, y in places]),
        [Series(f"{run.name}: {run.title}", points) for run, points in curves],
        Table(["run", "second", "tokens/s"], rows),
    )


def _differences(pair: Pair, samples: Samples) -> Table:
    first, second = pair.first.name, pair.second.name
    heads = ["row", "token", f"tokens {first}", f"tokens {second}", "both", first, second]
    rows = [
        [
            str(one.sample_index),
            str(one.token),
            *map(str, one.lengths),
            f"…{one.before}" if one.before else "",
            *one.after,
        ]
        for one in samples.differences
    ]
    return Table(heads, rows, frozenset({4, 5, 6}))


def _flips(pair: Pair, samples: Samples) -> Table:
    assert samples.grades
    heads = ["row", "data set", pair.first.name, pair.second.name]
    rows = [[str(flip.row), flip.dataset, *flip.answers] for flip in samples.grades.flips]
    return Table(heads, rows, frozenset({1, 2, 3}))


def _range(low: float, high: float) -> str:
    return f"{number(low)} to {number(high)}"
