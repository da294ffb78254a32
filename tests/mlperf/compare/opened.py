"""What has to be so in every comparison of good runs, opened in a browser."""

import json
from collections.abc import Sequence
from pathlib import Path

from mlperf import report
from mlperf.run import RECORD
from tests.browser import DESK, PHONE, Tab
from tests.jobs import figures
from tests.mlperf.report_page.opened import IN_LOG, PERCENTILES, close, shown

# Of each table that is not a chart's: its caption, and its cells
TABLES = """[...document.querySelectorAll('.scroll > table')]
  .filter((table) => !table.closest('figure'))
  .map((table) => [table.caption.textContent,
    [...table.tBodies[0].rows].map((row) => [...row.cells].map((cell) => cell.textContent))])"""
SEARCHES = "[...document.querySelectorAll('input[type=search]')]"


def logged(folder: Path) -> dict[str, float]:
    """The figures of a run by the names of a comparison, from LoadGen's log or accuracy.txt."""
    record = json.loads((folder / RECORD).read_text())
    if record["test"] == "accuracy":
        score, length = figures((folder / "accuracy.txt").read_text())
        seen = record["figures"]  # LoadGen measures nothing in accuracy runs
        speeds = {"samples/s": seen["samples_per_second"], "tokens/s": seen["tokens_per_second"]}
        return {**speeds, "exact_match": score, "tokens/sample": length}
    values = report.read_detail(folder / report.DETAIL_LOG).values
    rates = {
        name: values[key]
        for name in ("samples/s", "tokens/s")
        for key in IN_LOG[name][0]
        if key in values
    }
    latencies = {
        f"{title[-5:-1]} p{percent} ms": values[key.format(f"{percent}.00")] / 1e6
        for title, key in PERCENTILES.items()
        for percent in (50, 99)
    }
    return rates | latencies


def answers(folder: Path) -> dict[int, str]:
    """The answers of an accuracy run in LoadGen's log, by row."""
    entries = json.loads((folder / "mlperf_log_accuracy.json").read_text())
    return {entry["qsl_idx"]: entry["data"] for entry in entries}


def check_comparison(tab: Tab, page: Path, folders: Sequence[Path]) -> None:
    """Open a comparison of three or more runs, and compare it with their logs."""
    tab.open(f"file://{page}")
    for size, dark in ((PHONE, True), (DESK, False)):
        tab.show(size, dark)
        assert tab.value("document.documentElement.scrollWidth <= window.innerWidth")
    tables = tab.value(TABLES)
    every = [logged(folder) for folder in folders]
    [beside] = [rows for caption, rows in tables if caption == "figures of all runs"]
    assert {name: [shown(cell) for cell in cells] for name, *cells in beside} == {
        name: [close(one[name]) for one in every] for name in every[0]
    }
    pairs = [rows for caption, rows in tables if caption == "figures"]
    assert len(pairs) == len(folders) - 1
    for rows, second in zip(pairs, every[1:], strict=True):
        assert {name: [shown(cell) for cell in cells[:3]] for name, *cells in rows} == {
            name: [close(value), close(second[name]), close(second[name] / value)]
            for name, value in every[0].items()
        }
    if (folders[0] / "accuracy.txt").exists():
        first = answers(folders[0])
        text = tab.value("document.querySelector('main').textContent")
        for other in map(answers, folders[1:]):
            alike = sum(other[row] == answer for row, answer in first.items())
            assert f"{len(first)} samples, of which {alike} have the same tokens" in text
    _check_search(tab)
    assert tab.complaints == []


def _check_search(tab: Tab) -> None:
    """Search the longest table by keyboard; engines have hundreds of settings of their own."""
    tab.value("document.querySelectorAll('section > details').forEach((one) => (one.open = true))")
    tab.press("/", "/")
    assert tab.value(f"document.activeElement === {SEARCHES}[0]")
    tab.value(f"{SEARCHES}.at(-1).focus()")
    tab.type("MAX_MODEL_LEN")
    rows = "[...document.querySelectorAll('details .scroll')].at(-1).querySelectorAll('tbody tr')"
    cells = tab.value(
        f"[...{rows}].filter((row) => row.checkVisibility()).map((row) => row.innerText)"
    )
    assert cells
    assert all("max_model_len" in text.lower() for text in cells)
    status = f"{SEARCHES}.at(-1).closest('p').querySelector('[role=status]').textContent"
    assert tab.value(status).startswith(f"{len(cells)} of ")
