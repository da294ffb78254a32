"""Every labelled case through each task's extractor and comparer."""

import json
from pathlib import Path

import pytest

from data.samples import TASKS, task_of
from grading.pool import grade_all
from grading.sandbox.sandbox import Sandbox
from grading.sandbox.types import TimeLimit
from grading.tasks import Answer, livecodebench, math500, table
from grading.tasks.table import Context, MathWorker

CASES = Path(__file__).parents[1] / "cases"


def _rows() -> list[dict]:
    return [
        json.loads(line)
        for name in ("grading.jsonl", "more_grading.jsonl")
        for line in (CASES / name).read_text(encoding="utf-8").splitlines()
    ]


def test_every_task_has_a_row() -> None:
    assert tuple(table.TASKS) == TASKS  # in the order of reports


def test_every_labelled_case_agrees(sandbox: Sandbox) -> None:
    rows = _rows()
    judged = [row for row in rows if row["dataset"] != "livecodebench"]
    grades = grade_all(
        [
            Answer(i, task_of(row["dataset"]), row["model_output"], row["ground_truth"])
            for i, row in enumerate(judged)
        ],
        Context(None, sandbox),
        workers=2,
    )
    wanted = [(row["expected_extracted"], row["expected_correct"]) for row in judged]
    assert len(judged) > 550
    assert [g for g in grades if (g.extracted, g.correct) != wanted[g.sample_index]] == []


@pytest.mark.parametrize(
    "row", [row for row in _rows() if row["dataset"] == "livecodebench"], ids=lambda row: row["id"]
)
def test_code_is_extracted_as_labelled(row: dict) -> None:
    extracted = livecodebench.extract(row["model_output"].strip())
    assert (extracted and extracted[0]) == row["expected_extracted"]


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("gpqa", "gpqa"),
        ("GPQA_diamond", "gpqa"),
        ("mmlu_pro", "mmlu_pro"),
        ("MMLU-Pro", "mmlu_pro"),
        ("math-500", "math500"),
        ("MATH 500", "math500"),
        ("aime1983", "aime"),
        ("LiveCodeBench_v1", "livecodebench"),
        ("gpqa_from_aime", "gpqa"),
    ],
)
def test_task_of(name: str, task: str) -> None:
    assert task_of(name) == task


@pytest.mark.parametrize("name", ["mmlu", "", None, 3, float("nan")])
def test_task_of_unknown_names_the_known(name: object) -> None:
    with pytest.raises(ValueError, match=r"unknown data set.*gpqa.*livecodebench"):
        task_of(name)


def test_units_go_one_after_the_other() -> None:
    assert math500._as_prm("5 minuteseconds") == "5"


@pytest.mark.parametrize(
    ("slow", "truth"),
    [
        ("ff(10^9,10^8)", "1+f"),
        ("1e999999", "x"),
        ("9**9**9**9", "x"),
        ("(" * 20_000 + "x" + ")" * 20_000, "x+1"),
    ],
    ids=range(4),
)
def test_endless_formulas_are_timeouts(
    slow: str, truth: str, monkeypatch: pytest.MonkeyPatch, sandbox: Sandbox
) -> None:
    monkeypatch.setattr("grading.tasks.table.MATH_LIMIT_S", 1.0)
    worker = MathWorker(sandbox)
    assert worker.judge("x+1", "1+x").right
    with pytest.raises(TimeLimit, match=r"no reply within 1 s|memory"):
        worker.judge(slow, truth)
    assert worker.judge("x+1", "1+x").right  # the next row has a worker again
    worker.close()


@pytest.mark.parametrize("given_text", ["2023^2023^2023", "1/0", "(", "x**", ")" * 50])
def test_what_cannot_be_evaluated_is_wrong_not_an_error(given_text: str, sandbox: Sandbox) -> None:
    worker = MathWorker(sandbox)
    assert not worker.judge(given_text, "x").right
    worker.close()


def test_a_memory_hog_is_no_verdict(sandbox: Sandbox) -> None:
    worker = MathWorker(sandbox)
    with pytest.raises(TimeLimit, match="memory"):
        worker.judge("[0]*(10**10)", "x")
    worker.close()


def test_every_task_is_graded_and_missing_truths_are_wrong(sandbox: Sandbox) -> None:
    texts = {
        "gpqa": "ANSWER: B",
        "mmlu_pro": "ANSWER: J",
        "math500": r"\boxed{2x}",
        "aime": r"\boxed{42}",
    }
    truths = {"gpqa": "B", "mmlu_pro": "j", "math500": "x*2", "aime": "042"}
    answers = [Answer(i, task, texts[task], truths[task]) for i, task in enumerate(texts)]
    answers += [Answer(4, "aime", r"\boxed{42}", None), Answer(5, "gpqa", "", "B")]
    answers.append(Answer(6, "math500", r"\boxed{0}", 0))
    unsorted = grade_all(answers, Context(None, sandbox))
    grades = sorted(unsorted, key=lambda grade: grade.sample_index)
    assert [grade.correct for grade in grades] == [True] * 4 + [False] * 3
    assert [grade.extracted for grade in grades] == ["B", "J", "2x", 42, 42, None, "0"]
    assert [grade.status for grade in grades[4:]] == ["wrong", "no_answer", "wrong"]
    assert {grade.detail for grade in grades} == {None}
    assert set(texts) | {"livecodebench"} == set(TASKS)


def test_programs_without_problems_are_not_graded(sandbox: Sandbox) -> None:
    answer = Answer(0, "livecodebench", "```python\n1\n```", "q")
    (grade,) = grade_all([answer], Context(None, sandbox))
    assert (grade.status, grade.extracted) == ("not_graded", "1")
    assert "no problems" in str(grade.detail)
