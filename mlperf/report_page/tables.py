"""The tables of a report: the slowest requests, what went wrong, each of several servers."""

from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from mlperf.page.charts import Cell, Table
from mlperf.page.text import number
from mlperf.report_page import latencies
from mlperf.result_folder import ResultFolder

if TYPE_CHECKING:
    import pandas as pd

SHOWN = 10  # rows of a table
_ABOUT = ("arrival_s", "prompt_tokens")  # columns of every request


def slowest(folder: ResultFolder, links: dict[int, Markup]) -> list[tuple[str, Table]]:
    """The slowest requests by each latency. `links`: to their samples, by request id."""
    if folder.timeline is None:
        return []
    requests = latencies.requests(folder.timeline)
    made = []
    for title, column, unit in (
        ("by TTFT", "ttft_ms", "ms"),
        ("by TPOT", "tpot_ms", "ms"),
        ("by whole time", "latency_s", "s"),
    ):
        worst = requests[requests[column].notna()].nlargest(SHOWN, column)
        rows = [
            (
                _sample(one, links),
                *map(number, (one[name] for name in (column, *_ABOUT, "answer_tokens"))),
            )
            for one in worst.to_dict("records")
        ]
        head = ("sample", f"{column.partition('_')[0].upper().replace('LATENCY', 'time')}, {unit}")
        if rows:
            table = Table((*head, "arrived at, s", "prompt tokens", "answer tokens"), rows)
            made.append((title, table))
    return made


def failures(
    folder: ResultFolder, samples: "pd.DataFrame | None", links: dict[int, Markup]
) -> list[tuple[str, Table, int]]:
    """What went wrong with single requests: title, table of the first few, and their number."""
    made: list[tuple[str, Table, int]] = []
    if folder.log is not None and folder.log.errors:
        rows: list[tuple[Cell, ...]] = [
            (f"{line}", error) for error, line in [*folder.log.errors.items()][:SHOWN]
        ]
        table = Table(("line of the log", "error"), rows, frozenset({1}))
        made.append(("Errors that LoadGen logged", table, len(folder.log.errors)))
    if folder.timeline is not None:
        requests = folder.timeline.requests
        open_ = requests[requests["finish_s"].isna()]
        rows = [
            (_sample(one, links), *(number(one[name]) for name in _ABOUT))
            for one in open_.head(SHOWN).to_dict("records")
        ]
        head = ("sample", "arrived at, s", "prompt tokens")
        made.append(("Without an answer when the run ended", Table(head, rows), len(open_)))
    if samples is not None:
        for title, which in (
            ("Not judged", samples["grade"] == "not judged"),
            ("Cut off by the length limit", samples["finish"] == "length"),
            ("Empty answers", samples["tokens"].astype(float) == 0),
        ):
            made.append((title, _rows(samples[which].head(SHOWN)), int(which.sum())))
    return [(title, table, count) for title, table, count in made if count]


def endpoints(folder: ResultFolder) -> Table | None:
    """What each of several servers did; None if there was one engine."""
    if folder.timeline is None:
        return None
    requests = latencies.requests(folder.timeline)
    groups = requests.groupby("endpoint")
    if len(groups) < 2:
        return None
    rows = [
        (
            str(name),
            f"{len(group):,}",
            number(float(group["answer_tokens"].sum())),
            *(
                number(float(group[column].quantile(share)))
                for column in ("ttft_ms", "tpot_ms")
                for share in (0.5, 0.99)
            ),
        )
        for name, group in groups
    ]
    head = ("endpoint", "requests", "tokens", "TTFT p50, ms", "p99", "TPOT p50, ms", "p99")
    return Table(head, rows)


def links(samples: "pd.DataFrame | None") -> dict[int, Markup]:
    """Links to the samples in the browser, by request id."""
    if samples is None:
        return {}
    return {
        query: _link(row, sample)
        for row, query, sample in samples[["query", "sample"]].itertuples()
    }


def _rows(samples: "pd.DataFrame") -> Table:
    rows = [
        (
            _link(row, one["sample"]),
            one["task"],
            number(one["tokens"]),
            one["status"] or "–",
            one["detail"] or "–",
        )
        for row, one in samples.to_dict("index").items()
    ]
    return Table(("sample", "task", "tokens", "status", "detail"), rows, frozenset({0, 1, 3, 4}))


def _link(row: object, sample: object) -> Markup:
    """A link to a row in the browser of samples, which may have no index in a data set."""
    return Markup('<a href="#row-{}">{}</a>').format(row, row if sample is None else sample)


def _sample(request: Any, links: dict[int, Markup]) -> Cell:
    return links.get(request["request_id"], str(request["sample_index"]))
