"""LiveCodeBench: labelled programs, and the comparison of outputs."""

import json
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.livecodebench import Case, Problem
from data.problems import Problems
from errors import GradingError
from grading.pool import grade_all
from grading.sandbox.sandbox import Sandbox
from grading.tasks import Answer
from grading.tasks.livecodebench import Mode, extract, passes
from grading.tasks.outputs import same_output, same_value
from grading.tasks.table import Context, Rules

CASES = Path(__file__).parents[1] / "cases" / "livecodebench.jsonl"
# The public runner's stand-in for standard input breaks these two correct programs.
FIXED = {"hm_lines:readline_then_read", "hm_lines:buffer_readlines"}
# The public runner takes these functions from programs; here they are left to the sandbox.
TAKEN = {"hm_add:os_system", "hm_add:os_getcwd", "hm_add:multiprocessing_pool"}
ROWS = [json.loads(line) for line in CASES.read_text().splitlines()]


def _passed(row: dict, sandbox: Sandbox, code_limit: float, mode: Mode, tmp_path: Path) -> bool:
    path = tmp_path / f"{row['id'].replace(':', '-')}-{mode}.jsonl"
    path.write_text(json.dumps(row["problem"]) + "\n")
    problem = Problems(path).read(row["problem"]["question_id"])
    return passes(row["code"], problem, sandbox, code_limit, mode).right


def _check(tmp_path: Path, sandbox: Sandbox, mode: Mode, slow: bool) -> set[str]:
    rows = [row for row in ROWS if slow == (row["category"] == "time")]
    with ThreadPoolExecutor(2) as pool:
        verdicts = pool.map(
            lambda row: _passed(row, sandbox, 4 if slow else 20, mode, tmp_path),
            rows,
        )
        wrong = {
            row["id"]
            for row, passed in zip(rows, verdicts, strict=True)
            if passed is not (row["expected_pass"] and row["category"] != "exploit")
        }
    portable = {row["id"] for row in rows if not row["environment_dependent"]}
    assert wrong & portable == (FIXED & portable if mode == "fixed-stdio" else set())
    return wrong - portable


@pytest.mark.parametrize("mode", ["reference", "fixed-stdio"])
def test_labelled_programs_agree(tmp_path: Path, sandbox: Sandbox, mode: Mode) -> None:
    elsewhere = _check(tmp_path, sandbox, mode, slow=False)
    if mode == "reference":
        assert elsewhere <= TAKEN


@pytest.mark.slow
def test_labelled_programs_that_take_their_time_agree(tmp_path: Path, sandbox: Sandbox) -> None:
    _check(tmp_path, sandbox, "reference", slow=True)


def _problem(*tests: tuple[str, str], function: str | None = None) -> Problem:
    return Problem("q", function, [Case(*test) for test in tests])


@pytest.mark.parametrize(
    ("returned", "expected", "right"),
    [
        ("(1, 2)", "[1, 2]", True),  # a tuple returned is a list
        ("[(1, 2)]", "[[1, 2]]", False),
        ("{1: 2}", '{"1": 2}', False),
        ("{'1': 2}", '{"1": 2}', True),
        ("True", "1", True),
        ("1.0", "1", True),
        ("{1, 2}", "[1, 2]", False),
        ("float('nan')", "NaN", False),
        ("None", "null", True),
        ("type('Yes', (), {'__eq__': lambda a, b: True})()", "1", False),
        ("type('Yes', (int,), {'__eq__': lambda a, b: True})(2)", "1", False),
        ("{'dict': []}", "{}", False),
        ("{'other': 'x'}", '{"other": "x"}', True),
        ("a", "7", True),
        ("10**5000", "1", False),
        ("10**5000", "1" + "0" * 5000, True),  # more digits than int() reads by itself
        ("[float('nan')]", "[NaN]", False),
        ("__import__('fractions').Fraction(1, 2)", "0.5", True),
        ("[__import__('decimal').Decimal(7)]", "[7.0]", True),
        ("__import__('decimal').Decimal('sNaN')", "1", False),
        ("complex(7, 0)", "7", True),
        ("__import__('numpy').int64(7)", "7", True),
        ("__import__('numpy').array([7])", "7", True),  # as its == with brackets around says
        ("[__import__('numpy').array([7])]", "[[7]]", True),
        ("__import__('numpy').array([7, 7])", "[7, 7]", False),  # which is no single truth
        ("__import__('collections').deque([1])", "[1]", False),
        ("__import__('collections').Counter('a')", '{"a": 1}', True),
        ("exit()", "null", False),
    ],
)
def test_returned_values(returned: str, expected: str, right: bool, sandbox: Sandbox) -> None:
    code = f"class Solution:\n    def f(self, a):\n        return {returned}"
    assert passes(code, _problem(("7", expected), function="f"), sandbox, 5).right is right


def test_a_recursive_value_is_wrong(sandbox: Sandbox) -> None:
    code = "def f(a):\n    x = []\n    x.append(x)\n    return x"
    assert not passes(code, _problem(("7", "[]"), function="f"), sandbox, 5).right


@pytest.mark.parametrize(
    ("printed", "expected", "right"),
    [
        ("3.0 003\n", "3 3", True),
        (" a \nb\r\n\n", "a\nb", True),
        ("a\n\nb", "a\nb", False),
        ("Yes", "YES", False),
        ("1e2", "100", True),
        ("0.30000000000000004", "0.3", False),
        ("nan", "NaN", False),
        ("snan", "1", False),
        ("1 x", "1 X", False),
        ("", "", True),
        ("1 2", "1", False),
    ],
)
def test_same_output(printed: str, expected: str, right: bool) -> None:
    assert same_output(printed, expected) is right


@given(st.lists(st.decimals(allow_nan=False, allow_infinity=False), max_size=4))
def test_numbers_equal_in_any_spelling(numbers: list[Decimal]) -> None:
    plain = " ".join(str(number) for number in numbers)
    assert same_output(" ".join(f"{Decimal(number):E}" for number in numbers), plain)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@given(JSON, JSON)
@settings(deadline=None)
def test_hostile_values_are_never_an_exception(tagged: object, expected: object) -> None:
    assert same_value(tagged, expected) in (True, False)


def _row(**changes: object) -> dict:
    row = {
        "question_id": "q1",
        "public_test_cases": '[{"input": "1", "output": "1", "testtype": "stdin"}]',
        "private_test_cases": "[]",
        "metadata": "{}",
    }
    return row | changes


def test_an_unknown_problem_is_the_error_of_its_row(tmp_path: Path, sandbox: Sandbox) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(_row()) + "\n")
    code = "```python\nprint(input())\n```"
    answers = [Answer(i, "livecodebench", code, truth) for i, truth in enumerate(["q1", "q2"])]
    grades = grade_all(answers, Context(Problems(path), sandbox, Rules(5)))
    first, second = sorted(grades, key=lambda grade: grade.sample_index)
    assert (first.status, first.detail) == ("ok", None)
    assert second.status == "not_graded"
    assert "no problem q2" in str(second.detail)


def test_an_expected_value_that_can_not_be_read_is_the_problems(sandbox: Sandbox) -> None:
    for expected in ("[1", "[" * 100_000, "1" * 60_000):
        with pytest.raises(GradingError, match="problem q: expected output is not JSON"):
            passes("f = abs", _problem(("7", expected), function="f"), sandbox, 5)


def test_a_timeout_is_a_distinct_status(tmp_path: Path, sandbox: Sandbox) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(_row()) + "\n")
    answer = Answer(0, "livecodebench", "```python\nwhile True: pass\n```", "q1")
    (grade,) = grade_all([answer], Context(Problems(path), sandbox, Rules(0.3)))
    assert (grade.status, grade.rule) == ("timeout", "first fence, test 1 of 1: time limit")
    verdict = passes("while True: pass", _problem(("1", "1"), function="f"), sandbox, 0.3)
    assert (verdict.too_slow, verdict.rule) == (True, "does not load: time limit")
    assert not passes("1 / 0", _problem(("1", "1")), sandbox, 5).too_slow


def test_the_first_closed_fence_counts() -> None:
    assert extract("```python\na\n```\n```python\nb\n```") == ("a", "first fence")
    assert extract("```python\na") is None
