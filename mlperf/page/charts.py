"""Charts as SVG, each with a summary in words and a table of what it shows.

Their colours are in page.css, so that they follow the reader's choice of light or dark.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from markupsafe import Markup

from mlperf.page.axes import Axis
from mlperf.page.text import marked, number

WIDTH, HEIGHT = 480, 240
LEFT, RIGHT, BOTTOM = 54, 20, 40  # margins around the plot
ROW = 15  # height of a line of text
BINS = 40
COLOURS = 6  # of page.css

Kind = Literal["limit", "figure"]
Cell = str | Markup


@dataclass(frozen=True)
class Table:
    """A table; cells are text or HTML."""

    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    texts: frozenset[int] = frozenset({0})  # columns that are not numbers

    def numeric(self, column: int) -> bool:
        """Whether a column has numbers, which are aligned to the right."""
        return column not in self.texts


@dataclass(frozen=True)
class Chart:
    """A picture with its title, what it shows in words, and the same in a table."""

    title: str
    summary: str | Markup
    picture: Markup
    table: Table
    legend: Sequence[str] = ()  # the names of the series, in the order of their colours


@dataclass(frozen=True)
class Series:
    """Points in order; a point without a y is a gap."""

    name: str
    points: Sequence[tuple[float, float | None]]
    marks: bool = False  # a mark at each point
    line: bool = True  # a line through the points
    names: Sequence[str] = ()  # what a mark is, in words


@dataclass(frozen=True)
class Rule:
    """A line across the plot at a value of an axis."""

    value: float
    label: str
    kind: Kind = "figure"
    across: Literal["x", "y"] = "x"  # the axis that the value is of


@dataclass(frozen=True)
class Band:
    """A range of the x axis."""

    low: float
    high: float
    label: str


@dataclass(frozen=True)
class Interval:
    """A row of an interval chart: a value, what it may well be, and one to compare it with."""

    name: str
    low: float
    value: float
    high: float
    reference: float | None = None


@dataclass(frozen=True)
class _Plot:
    """The area between the axes, in the picture's units; y grows downwards."""

    x: Axis
    y: Axis
    top: int
    left: int = LEFT
    height: int = HEIGHT
    shapes: list[Markup] = field(default_factory=list)

    @property
    def bottom(self) -> int:
        return self.height - BOTTOM

    def at_x(self, value: float) -> float:
        return self.left + self.x.share(value) * (WIDTH - RIGHT - self.left)

    def at_y(self, value: float) -> float:
        return self.bottom - self.y.share(value) * (self.bottom - self.top)

    def add(self, shape: str, **values: object) -> None:
        """Add a shape; floats are rounded to a tenth of a unit, of HTML there is only the text."""
        plain = {name: _plain(value) for name, value in values.items()}
        self.shapes.append(Markup(shape).format(**plain))

    def picture(self, summary: str | Markup) -> Markup:
        """The SVG; its text alternative is `summary`."""
        return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">\n{}\n</svg>').format(
            *(
                WIDTH,
                self.height,
                Markup(summary).striptags() if isinstance(summary, Markup) else summary,
            ),
            Markup("\n").join(self.shapes),
        )


def lines(
    title: str,
    summary: str | Markup,
    x: Axis,
    y: Axis,
    series: Sequence[Series],
    table: Table,
    rules: Sequence[Rule] = (),
) -> Chart:
    """Lines, or with `Series.marks` points, over an x axis."""
    plot = _Plot(x, y, _top(rules))
    _draw_axes(plot)
    _draw_rules(plot, rules)
    for index, one in enumerate(series):
        _draw_series(plot, one, index % COLOURS)
    legend = [one.name for one in series]
    return Chart(title, summary, plot.picture(summary), table, legend)


def histogram(
    title: str,
    summary: str | Markup,
    x_label: str,
    values: Sequence[float],
    rules: Sequence[Rule] = (),
    band: Band | None = None,
    what: str = "requests",
) -> Chart:
    """How many of `values` lie in each bin of a logarithmic axis; those up to 0 lie in the first.

    The axis reaches to all rules and the band, so that the distance from a limit can be seen.
    """
    marks = [rule.value for rule in rules] + ([band.low, band.high] if band else [])
    x = Axis.around(x_label, [*values, *marks], logarithmic=True)
    edges = x.bins(BINS)
    counts = [0] * BINS
    for value in values:
        counts[min(int(x.share(value) * BINS), BINS - 1)] += 1
    plot = _Plot(x, Axis.around(what, counts), _top(rules, band))
    if band:
        _draw_band(plot, band)
    _draw_axes(plot)
    rows = []
    for (low, high), count in zip(pairwise(edges), counts, strict=True):
        if not count:
            continue
        left, right = plot.at_x(low), plot.at_x(high)
        label = f"{number(low, 3)} to {number(high, 3)}"
        rows.append((label, f"{count:,}", f"{100 * count / len(values):.1f} %"))
        plot.add(
            '<rect class="bar" x="{x}" y="{y}" width="{width}" height="{height}">'
            "<title>{label}: {count} {what}</title></rect>",
            x=left + 0.5,
            y=plot.at_y(count),
            width=right - left - 1,
            height=plot.bottom - plot.at_y(count),
            label=label,
            count=f"{count:,}",
            what=what,
        )
    _draw_rules(plot, rules)
    return Chart(title, summary, plot.picture(summary), Table((x_label, what, "share"), rows))


def intervals(
    title: str,
    summary: str | Markup,
    x: Axis,
    rows: Sequence[Interval],
    table: Table,
    rules: Sequence[Rule] = (),
) -> Chart:
    """A row for each interval, with a dot at its value and a tick at its reference."""
    left, step = 104, 26
    top = _top(rules)
    height = top + step * len(rows) + BOTTOM
    plot = _Plot(x, Axis("", 0, 1), top, left, height)
    _draw_axes(plot, horizontal=False)
    _draw_rules(plot, rules)
    for index, row in enumerate(rows):
        y = top + step * (index + 0.5)
        plot.add(
            '<text class="name" x="{x}" y="{y}">{name}</text>', x=left - 8, y=y + 4, name=row.name
        )
        plot.add(
            '<path class="whisker" d="M{low},{y}H{high}"><title>{label}</title></path>',
            low=plot.at_x(row.low),
            high=plot.at_x(row.high),
            y=y,
            label=f"{row.name}: {number(row.low)} to {number(row.high)}",
        )
        if row.reference is not None:
            plot.add(
                '<path class="reference" d="M{x},{top}V{bottom}"><title>{label}</title></path>',
                x=plot.at_x(row.reference),
                top=y - 8,
                bottom=y + 8,
                label=f"{row.name}, reference: {number(row.reference)}",
            )
        plot.add(
            '<circle class="dot" cx="{x}" cy="{y}" r="4.5"><title>{label}</title></circle>',
            x=plot.at_x(row.value),
            y=y,
            label=f"{row.name}: {number(row.value)}",
        )
    return Chart(title, summary, plot.picture(summary), table)


def _plain(value: object) -> object:
    """A value for the text of a shape."""
    if isinstance(value, Markup):
        return value.striptags()
    return f"{value:.1f}" if isinstance(value, float) else value


def _top(rules: Sequence[Rule], band: Band | None = None) -> int:
    """The margin above the plot: a line for each label there, and one for labels at its edge."""
    labels = sum(rule.across == "x" for rule in rules) + (band is not None)
    return 10 + ROW * (labels or any(rule.across == "y" for rule in rules))


def _draw_axes(plot: _Plot, horizontal: bool = True) -> None:
    right = WIDTH - RIGHT
    for value in plot.x.ticks():
        x = plot.at_x(value)
        plot.add('<path class="grid" d="M{x},{a}V{b}"/>', x=x, a=plot.top, b=plot.bottom)
        plot.add(
            '<text class="tick middle" x="{x}" y="{y}">{text}</text>',
            x=x,
            y=plot.bottom + 15,
            text=number(value),
        )
    for value in plot.y.ticks() if horizontal else ():
        y = plot.at_y(value)
        plot.add('<path class="grid" d="M{a},{y}H{b}"/>', a=plot.left, b=right, y=y)
        plot.add(
            '<text class="tick end" x="{x}" y="{y}">{text}</text>',
            x=plot.left - 6,
            y=y + 4,
            text=_compact(value),
        )
    plot.add('<path class="axis" d="M{a},{y}H{b}"/>', a=plot.left, b=right, y=plot.bottom)
    plot.add(
        '<text class="label end" x="{x}" y="{y}">{text}</text>',
        x=right,
        y=plot.height - 6,
        text=marked(plot.x.label),
    )
    if horizontal and plot.y.label:
        plot.add(
            '<text class="label" x="{x}" y="{y}">{text}</text>',
            x=2,
            y=plot.height - 6,
            text=Markup("↑ {}").format(marked(plot.y.label)),
        )


def _draw_rules(plot: _Plot, rules: Sequence[Rule]) -> None:
    """The rules; each label of a value of x has a line of its own above the plot."""
    upright = sorted((rule for rule in rules if rule.across == "x"), key=lambda rule: rule.value)
    for index, rule in enumerate(upright):
        x, y = plot.at_x(rule.value), 12 + ROW * index
        plot.add(
            '<path class="rule {kind}" d="M{x},{top}V{bottom}"/>',
            kind=rule.kind,
            x=x,
            top=y - 9,
            bottom=plot.bottom,
        )
        before = x > (plot.left + WIDTH) / 2  # the label is on the side with more room
        plot.add(
            '<text class="rule-label {kind} {anchor}" x="{x}" y="{y}">{text}</text>',
            kind=rule.kind,
            anchor="end" if before else "start",
            x=x - 5 if before else x + 5,
            y=y,
            text=marked(rule.label),
        )
    level = -math.inf
    for rule in sorted((one for one in rules if one.across == "y"), key=lambda one: -one.value):
        above, level = level, plot.at_y(rule.value)
        plot.add(
            '<path class="rule {kind}" d="M{a},{y}H{b}"/>',
            kind=rule.kind,
            a=plot.left,
            b=WIDTH - RIGHT,
            y=level,
        )
        plot.add(
            '<text class="rule-label {kind} end" x="{x}" y="{y}">{text}</text>',
            kind=rule.kind,
            x=WIDTH - RIGHT - 4,
            y=level - 4 if level - above > ROW else level + 13,  # not into the line above
            text=marked(rule.label),
        )


def _draw_band(plot: _Plot, band: Band) -> None:
    """A band, with its label in the first line above the plot."""
    low, high = plot.at_x(band.low), plot.at_x(band.high)
    plot.add(
        '<rect class="band" x="{x}" y="{top}" width="{width}" height="{height}"/>',
        x=low,
        top=plot.top,
        width=max(high - low, 1.0),
        height=plot.bottom - plot.top,
    )
    before = low > (plot.left + WIDTH) / 2
    plot.add(
        '<text class="rule-label limit {anchor}" x="{x}" y="{y}">{text}</text>',
        anchor="end" if before else "start",
        x=high if before else low,
        y=plot.top - 4,
        text=marked(band.label),
    )


def _draw_series(plot: _Plot, series: Series, colour: int) -> None:
    if series.line:
        steps: list[str] = []
        pen_up = True
        for x, y in series.points:
            if y is None or not math.isfinite(y):
                pen_up = True
                continue
            steps.append(f"{'M' if pen_up else 'L'}{plot.at_x(x):.1f},{plot.at_y(y):.1f}")
            pen_up = False
        plot.add(
            '<path class="series colour-{colour}" d="{steps}"><title>{name}</title></path>',
            colour=colour,
            steps="".join(steps),
            name=marked(series.name).striptags(),
        )
    for index, (x, y) in enumerate(series.points if series.marks else ()):
        if y is not None and math.isfinite(y):
            name = series.names[index] if series.names else series.name
            plot.add(
                '<circle class="mark colour-{colour}" cx="{x}" cy="{y}" r="4.5">'
                "<title>{name}: {at_x}, {at_y}</title></circle>",
                colour=colour,
                x=plot.at_x(x),
                y=plot.at_y(y),
                name=marked(name).striptags(),
                at_x=number(x),
                at_y=number(y),
            )


def _compact(value: float) -> str:
    """A tick of the y axis, which has room for five characters."""
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            unit = 1e3 if suffix == "k" else size
            return f"{number(value / unit, 3)}{suffix}"
    return number(value)
