"""A sweep as a page: throughput against latency, all points, and the best command lines."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mlperf.page.axes import Axis
from mlperf.page.charts import Chart, Rule, Series, Table, lines
from mlperf.page.document import document
from mlperf.page.text import number
from mlperf.submission.tree import SCENARIOS
from mlperf.sweep import table
from mlperf.sweep.results import LATENCIES, Result, best, limit, on_front
from ref_dsinfer.files import write_text

TEMPLATE = Path(__file__).with_name("page.html")
FRONT = "Pareto front"


@dataclass(frozen=True)
class Choice:
    """The best point of a scenario."""

    scenario: str
    result: Result
    verdict: str
    command: str
    reasons: Sequence[str]  # why its run can't be submitted as it is


def write(results: Sequence[Result], output_dir: Path, path: Path) -> None:
    """Write the page. Raises: OutputError."""
    choices = [
        Choice(
            SCENARIOS[mode],
            result,
            table.verdict(result),
            table.command(result, output_dir),
            result.known_reasons,
        )
        for mode, result in best(results).items()
    ]
    rows = [table.cells(result, marks) for result, marks in table.marked(results)]
    values = {
        "results": results,
        "left": sum(not result.measured for result in results),
        "choices": choices,
        "charts": [chart for name in LATENCIES if (chart := _chart(results, name))],
        "points": Table(table.HEADS, rows, frozenset({0, 1, 6, 7})),
    }
    write_text(path, document(TEMPLATE, f"Sweep of {len(results)} runs", values))


def _chart(results: Sequence[Result], latency: str) -> Chart | None:
    """Throughput against a latency of Server and Interactive; None without such points."""
    name = f"{latency[:4].upper()} p99"
    places: dict[str, list[tuple[float, float, str]]] = {}
    for result in results:
        tokens, ms = result.figure("tokens_per_second"), result.figure(latency)
        if tokens is not None and ms is not None:
            places.setdefault(result.point.engine.name, []).append((tokens, ms, result.point.label))
    if not places:
        return None
    front = sorted(
        (results[place].figure("tokens_per_second") or 0.0, results[place].figure(latency) or 0.0)
        for place in on_front(results, latency)
    )
    rules = []
    for mode, scenario in SCENARIOS.items():
        if most := limit(mode, latency):
            rules.append(Rule(most, f"{scenario}: {most:g} ms", "limit", "y"))
    every = [place for one in places.values() for place in one]
    rows = [[label, number(tokens), number(ms)] for tokens, ms, label in every]
    curves = [
        Series(engine, [place[:2] for place in one], True, False, [place[2] for place in one])
        for engine, one in places.items()
    ]
    return lines(
        f"Throughput against {name}",
        f"Better is further right and lower. {len(front)} of {len(every)} points are on the front:"
        " no other has more throughput and less latency.",
        Axis.around("tokens/s", [tokens for tokens, _, _ in every]),
        Axis.around("ms", [ms for _, ms, _ in every] + [rule.value for rule in rules], True),
        [*curves, Series(FRONT, front)],
        Table(["point", "tokens/s", f"{name} ms"], rows),
        rules,
    )
