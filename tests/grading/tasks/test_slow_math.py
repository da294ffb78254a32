"""Formulas on which the public grader takes seconds or forever: each ends, in bounded memory."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from grading.sandbox.inside.limits import Limits
from grading.sandbox.sandbox import Sandbox
from grading.sandbox.types import ProcessEnded, TimeLimit

CASES = Path(__file__).parents[1] / "cases" / "slow_math.jsonl"
LIMIT_S = 3.0
MEMORY = 1 << 30
Row = tuple[str, str, bool | None]  # answer, truth, and the public verdict: None if it never ended
SHORT = ("9**9**9**9", "[0]*(10**10)", "2023^2023^2023")


def _rows() -> Iterator[Row]:
    for line in CASES.read_text().splitlines():
        row = json.loads(line)
        yield "".join(text * times for text, times in row["given"]), row["truth"], row["right"]


def _check(sandbox: Sandbox, row: Row, limit: float) -> dict:
    """The reply to a row within the limit; its verdict must be the public one."""
    answer, truth, public = row
    with sandbox.start("grading.tasks.math500", Limits(memory=MEMORY)) as process:
        try:
            reply = process.ask({"answer": answer, "truth": truth}, limit)
        except TimeLimit:
            reply = {"error": "time limit"}
        except ProcessEnded as error:
            reply = {"error": str(error)}
    if "error" not in reply:
        assert reply["right"] is public
    return reply


@pytest.mark.slow
def test_every_labelled_formula_ends(sandbox: Sandbox) -> None:
    peak, done = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.05):
            sizes = []
            for child in psutil.Process().children(recursive=True):
                try:
                    sizes.append(child.memory_info().rss)
                except psutil.NoSuchProcess:
                    continue
            peak = max(peak, max(sizes, default=0))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        rows = list(_rows())
        assert len(rows) >= 14
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda row: _check(sandbox, row, LIMIT_S), rows))
    finally:
        done.set()
        watcher.join()
    assert 0 < peak < 1.1 * MEMORY


@pytest.mark.parametrize("row", [row for row in _rows() if row[0] in SHORT], ids=lambda row: row[0])
def test_some_of_them_end_at_once(row: Row, sandbox: Sandbox) -> None:
    reply = _check(sandbox, row, 1)
    assert ("error" in reply) is (row[2] is None)


def test_a_process_serves_on_after_what_fills_its_memory(sandbox: Sandbox) -> None:
    with sandbox.start("grading.tasks.math500", Limits(memory=MEMORY)) as process:
        assert "memory" in process.ask({"answer": "[0]*(10**10)", "truth": "x"}, LIMIT_S)["error"]
        assert process.ask({"answer": "x+1", "truth": "1+x"}, LIMIT_S)["right"] is True
