"""A solution loads as after the public runner's prelude, though that has run before the fork."""

import json
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest

from grading.sandbox.sandbox import Sandbox
from grading.tasks import program
from grading.tasks.livecodebench import Case, Problem, passes

CASES = Path(__file__).parents[1] / "cases" / "solutions.jsonl"
SUMS = {  # inputs and outputs of the labelled solutions: of programs, and of functions
    None: [Case("3\n1 2 3\n", "6"), Case("2\n10 20\n", "30"), Case("1\n7\n", "7")],
    "total": [Case("[1,2,3]", "6"), Case("[10,20]", "30"), Case("[7]", "7")],
}

LINES = program.PRELUDE.count("\n")
SEEN = """
import json as before
found = {name: id(value) for name, value in globals().items() if name[0] != "_"}
def f(_):
    return found
"""


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[dict], dict]]:
    """A runner in this process; its changes to the interpreter are undone."""
    for name in ("exit", "quit", "help", "copyright", "credits", "license"):
        monkeypatch.setattr(f"builtins.{name}", None, raising=False)
    digits, depth = sys.get_int_max_str_digits(), sys.getrecursionlimit()
    yield program.handler()
    sys.set_int_max_str_digits(digits)
    sys.setrecursionlimit(depth)


def test_a_solution_finds_what_the_prelude_imports(
    runner: Callable[[dict], dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    with open(0, closefd=False) as stdin, open(1, "w", closefd=False) as stdout:
        monkeypatch.setattr(sys, "stdin", stdin)  # others than when the runner was made
        monkeypatch.setattr(sys, "stdout", stdout)
        plain = ModuleType("plain")
        exec(program.PRELUDE + "\n\n" + SEEN, vars(plain))
        assert runner({"code": SEEN, "function": "f", "mode": "reference"}) == {"ok": True}
        names = dict(runner({"input": "0"})["value"]["dict"])
    assert names == plain.found
    assert len(names) > 300


@pytest.mark.parametrize(
    ("code", "loads"),
    [
        ("f = abs", True),
        ("from __future__ import annotations\nf = abs", False),  # not the first statement there
        ("f = abs\nx = ", False),
        ("'text'\nassert __doc__ == ''\nf = abs", True),
        (f"import sys\nf = abs\nassert sys._getframe().f_lineno == {LINES + 5}", True),
    ],
)
def test_a_solution_loads_as_after_the_prelude(
    code: str, loads: bool, runner: Callable[[dict], dict]
) -> None:
    def loads_plainly() -> bool:
        try:
            exec(program.PRELUDE + "\n\n" + code, {"__doc__": ""})
        except (SyntaxError, AssertionError):
            return False
        return True

    for function in ("f", None):
        assert runner({"code": code, "function": function, "mode": "reference"})["ok"] == loads
    assert loads_plainly() == loads


def test_labelled_solutions_agree(sandbox: Sandbox) -> None:
    rows = [json.loads(line) for line in CASES.read_text().splitlines()]

    def right(row: dict) -> bool:
        problem = Problem("sum", row["function"], SUMS[row["function"]])
        return passes(row["code"], problem, sandbox, 10).right

    with ThreadPoolExecutor(2) as pool:
        verdicts = dict(zip((row["id"] for row in rows), pool.map(right, rows), strict=True))
    assert verdicts == {row["id"]: row["passes"] for row in rows}
    assert len(verdicts) == len(rows) > 140
