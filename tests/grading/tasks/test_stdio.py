"""Standard input and output of programs in both modes, against what the public runner does.

`stdio.jsonl` says how many of `TESTS` a program passes in a row: in "reference" mode that is what
the public runner found, in "fixed-stdio" mode what a program is due that is wrapped as it does.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from grading.sandbox.sandbox import Sandbox
from grading.tasks.livecodebench import Case, Mode, Problem, passes

CASES = Path(__file__).parents[1] / "cases" / "stdio.jsonl"
ROWS = [json.loads(line) for line in CASES.read_text().splitlines()]
TESTS = [Case("3\n1\n2\n3\n", "6"), Case("2\n10\n20", "30"), Case("1\n\n7\n", "7")]
MODES: tuple[Mode, ...] = ("reference", "fixed-stdio")


def _problem(*tests: tuple[str, str], function: str | None = None) -> Problem:
    return Problem("q", function, [Case(*test) for test in tests])


@pytest.mark.parametrize("mode", MODES)
def test_programs_pass_as_far_as_labelled(mode: Mode, sandbox: Sandbox) -> None:
    def passed(row: dict) -> int:
        verdict = passes(row["code"], Problem("q", None, TESTS), sandbox, 10, mode)
        if verdict.right:
            return len(TESTS)
        where, _, _ = verdict.rule.partition(":")
        return 0 if where == "does not load" else int(where.split()[1]) - 1

    with ThreadPoolExecutor(2) as pool:
        counts = dict(zip((row["id"] for row in ROWS), pool.map(passed, ROWS), strict=True))
    assert counts == {row["id"]: row[mode] for row in ROWS}


def test_the_modes_differ_where_the_stand_in_fails_correct_programs() -> None:
    worse = {row["id"] for row in ROWS if row["reference"] < row["fixed-stdio"]}
    assert worse >= {"iter", "bufreadline", "bufreadlines", "open0", "next", "with"}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1 2\r\n3\r\n", "1 2\n3"),
        ("a\n\nb", "a\n\nb"),
        ("", ""),
        ("é\0\n", "é\0"),
        ("1e3 2", "1000 2.0"),
        ("٣", "3"),
        (" x ", "x"),
    ],
)
def test_input_arrives_as_it_is(text: str, expected: str, mode: Mode, sandbox: Sandbox) -> None:
    code = "import sys\nprint(sys.stdin.read(), end='')"
    assert passes(code, _problem((text, expected)), sandbox, 5, mode).right


def test_an_unpaired_surrogate_is_printed_as_the_public_runner_lets_it(sandbox: Sandbox) -> None:
    problem = _problem(("", "\ud800"))
    assert passes("print('\\ud800')", problem, sandbox, 5, "reference").right
    assert not passes("print('\\ud800')", problem, sandbox, 5, "fixed-stdio").right


@pytest.mark.parametrize("mode", MODES)
def test_rules_name_the_test_that_decided(mode: Mode, sandbox: Sandbox) -> None:
    def rule(code: str, *tests: tuple[str, str]) -> str:
        return passes(code, _problem(*tests), sandbox, 1, mode).rule

    echo = "print(input())"
    assert rule(echo, ("1", "1"), ("2", "2")) == "all of 2 tests"
    assert rule(echo, ("1", "1"), ("2", "3"), ("4", "4")) == "test 2 of 3: wrong output"
    assert rule("while True: pass", ("1", "1")) == "test 1 of 1: time limit"
    assert rule("print(1/0)", ("1", "1")) == "test 1 of 1: ZeroDivisionError: division by zero"
    assert rule("x = ", ("1", "1")).startswith("does not load: SyntaxError: ")
    assert rule("x = 1") == "all of 0 tests"
    assert rule("import os\nos._exit(0)", ("1", "1")).startswith("test 1 of 1: the process ended")


def test_each_test_has_its_own_time_limit(sandbox: Sandbox) -> None:
    slow = "def f(a):\n    import time\n    time.sleep(0.4)\n    return a"
    problem = _problem(*[("1", "1")] * 4, function="f")
    assert passes(slow, problem, sandbox, 1).right
    assert passes(slow, problem, sandbox, 0.3).rule == "test 1 of 4: time limit"


@pytest.mark.parametrize("mode", MODES)
def test_expected_outputs_are_nowhere_in_the_program_s_process(
    mode: Mode, sandbox: Sandbox
) -> None:
    code = (
        "import sys\n"
        "seen, frame = '', sys._getframe()\n"
        "while frame:\n"
        "    seen, frame = seen + repr(frame.f_locals), frame.f_back\n"
        "print('5' * 23 if '5' * 23 in seen else 'nothing')"
    )
    verdict = passes(code, _problem(("1", "5" * 23)), sandbox, 5, mode)
    assert verdict.rule == "test 1 of 1: wrong output"


def test_what_a_function_prints_is_forgotten_before_the_next_test(sandbox: Sandbox) -> None:
    code = "def f(x):\n    print('y' * (20 << 20))\n    return x\n"  # a file may have 32 MiB
    assert passes(code, _problem(*[("1", "1")] * 3, function="f"), sandbox, 10).right
