"""The explanation of one row."""

import json
from pathlib import Path

import pandas as pd
import pytest

from errors import ColumnsError, UsageError
from grading.explain import explain
from grading.sandbox.sandbox import Sandbox
from grading.tasks.table import Rules

TESTS = [{"input": f"{n}", "output": f"{2 * n}", "testtype": "stdin"} for n in (0, 2, 3)]
PROBLEM = {
    "question_id": "double",
    "public_test_cases": json.dumps(TESTS),
    "private_test_cases": "[]",
    "metadata": "{}",
}
ROWS = [
    ("gpqa", "C", "hm" * 900 + " ANSWER: b", ["extracted: 'B'", "wrong by answer line, letter"]),
    ("aime1983", 7, "none", ["extracted: None", "no_answer by no answer"]),
    (
        *("math-500", r"\frac{3}{2}", r"\boxed{1.5\text{ cm}}"),
        [
            r"normal forms by MATH: '1.5' and '\\frac{3}{2}'",
            "normal forms by PRM800K:",
            "ok by boxed, sympy",
        ],
    ),
    (
        *("livecodebench", "double", "```python\nprint(int(input()) ** 2)\n```"),
        [
            "input of the failing test: '3'",
            "expected output of the failing test: '6'",
            "program's output of the failing test: '9\\n'",
            "wrong by first fence, test 3 of 3: wrong output",
        ],
    ),
    ("livecodebench", "double", "```python\nx = (\n```", ["wrong by first fence, does not load"]),
    ("livecodebench", "other", "```python\nx\n```", ["not_graded by first fence: ", "no problem"]),
]


@pytest.fixture
def frame() -> pd.DataFrame:
    names, truths, texts, _ = zip(*ROWS, strict=True)
    columns = {"dataset": names, "ground_truth": truths, "model_output": texts}
    return pd.DataFrame(columns).assign(tok_model_output_len=1)


@pytest.mark.parametrize("row", range(len(ROWS)))
def test_the_steps_of_each_task(
    tmp_path: Path, frame: pd.DataFrame, row: int, sandbox: Sandbox
) -> None:
    problems = tmp_path / "p.jsonl"
    problems.write_text(json.dumps(PROBLEM) + "\n")
    text = explain(frame, row, problems, Rules(), sandbox)
    assert text.startswith(f"row {row}: {ROWS[row][0]}, task ")
    for line in ROWS[row][3]:
        assert line in text
    assert max(map(len, text.splitlines())) < 700
    assert sorted(tmp_path.iterdir()) == [problems]


def test_what_can_not_be_explained(frame: pd.DataFrame, sandbox: Sandbox) -> None:
    for row in (-1, len(ROWS)):
        with pytest.raises(UsageError, match="rows are 0 to 5"):
            explain(frame, row, None, Rules(), sandbox)
    with pytest.raises(ColumnsError, match="model_output"):
        explain(frame.drop(columns="model_output"), 0, None, Rules(), sandbox)
