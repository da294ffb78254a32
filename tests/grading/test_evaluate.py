"""Grading a frame: totals, what is printed and written, and grades kept from an earlier run."""

import ast
import dataclasses
import json
import re
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from data.samples import read_frame
from errors import ColumnsError, GradingError
from grading import evaluate
from grading.evaluate import GradingOptions
from grading.metrics import Evaluation, Totals
from grading.sandbox import levels
from grading.sandbox.inside.limits import Limits
from grading.sandbox.process import Confined
from grading.sandbox.sandbox import Sandbox
from grading.sandbox.types import SandboxError

# as the official submission checker looks for them: ACC_PATTERN in its constants.py, and the hash
# in its accuracy_check.py
CHECKER = (r".*'exact_match':\s([\d.]+).*", r".*'tokens_per_sample':\s([\d.]+).*")
HASH = r"^hash=([\w\d]+)$"


def _frame() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "dataset": ["gpqa", "AIME1983", "math-500", "mmlu_pro", "aime1983"],
            "ground_truth": ["B", 42, r"\frac12", "j", "7"],
            "model_output": ["ANSWER: B", r"\boxed{042}", r"\boxed{0.5}", None, r"\boxed{8}"],
            "tok_model_output_len": [10, 20000, 5, 0, 25],
            "finish": ["stop", "stop", "length", "stop", "stop"],
        },
        index=[3, 1, 4, 1, 5],
    )


def _run(tmp_path: Path, frame: pd.DataFrame | None = None, **options: Any) -> Evaluation:
    return evaluate.evaluate_and_report(
        *(_frame() if frame is None else frame, tmp_path / "d.pkl", None, tmp_path),
        GradingOptions(**options),
    )


def test_totals_count_every_row() -> None:
    evaluation = evaluate.evaluate(_frame(), None)
    assert evaluation.total == Totals("all", 5, 3, 4008.0, 1, 2, 0, 0)
    assert evaluation.exact_match == 60.0
    assert [totals.task for totals in evaluation.tasks] == ["gpqa", "mmlu_pro", "math500", "aime"]
    assert evaluation.tasks[3] == Totals("aime", 2, 1, 10012.5, 0, 1, 0, 0)
    frame = evaluation.frame
    assert frame["extracted_answer"].tolist() == ["B", 42, "0.5", None, 8]
    assert frame["prompt_accuracy"].tolist() == [100.0, 100.0, 100.0, 0.0, 0.0]
    assert frame["grading_status"].tolist() == ["ok", "ok", "ok", "no_answer", "wrong"]
    assert frame["grading_rule"].tolist() == [
        "answer line, letter",
        "boxed, integer",
        "boxed, same text (MATH)",
        "no answer",
        "boxed, integer",
    ]
    assert frame["grading_detail"].tolist() == [None] * 5
    assert evaluation.verdict == "not comparable with the official limits: 5 of 4388 rows"


def test_a_graded_frame_may_be_graded_again() -> None:
    once = evaluate.evaluate(_frame(), None).frame
    again = evaluate.evaluate(once.assign(lenient_accuracy=1.0), None).frame
    pd.testing.assert_frame_equal(once, again)


def test_the_line_is_what_the_checker_reads() -> None:
    line = evaluate.evaluate(_frame(), None).result_line
    assert ast.literal_eval(line) == {
        "exact_match": 60.0,
        "tokens_per_sample": 4008.0,
        "num-samples": 5,
    }
    matches = [re.match(pattern, line) for pattern in CHECKER]
    assert [match and float(match[1]) for match in matches] == [60.0, 4008.0]


NO_LENGTHS = [None, float("nan"), -1, "x", [1], float("inf"), 10**400, "1e999999999", np.arange(3)]


@pytest.mark.parametrize(
    "value", [*NO_LENGTHS, Decimal("1E+999999999"), Decimal("sNaN"), np.int64(-1)], ids=repr
)
def test_a_length_that_is_no_number_is_named(value: object) -> None:
    frame = _frame()
    lengths = [1, 2, value, 3, 4]
    frame["tok_model_output_len"] = pd.Series(lengths, frame.index, dtype=object)
    with pytest.raises(ColumnsError, match="row 2: tok_model_output_len is") as caught:
        evaluate.evaluate(frame, None)
    assert "np." not in str(caught.value)


def test_numbers_of_a_billion_digits_are_no_truth() -> None:
    frame = _frame().iloc[[1, 4, 1, 1, 1]].reset_index(drop=True)
    truths = [Decimal("1E+999999999"), Decimal("7"), Fraction(85, 2), Decimal("sNaN"), 42]
    frame["ground_truth"] = pd.Series(truths, dtype=object)
    rights = evaluate.evaluate(frame, None).frame["prompt_accuracy"].tolist()
    assert rights == [0, 0, 100, 0, 100]
    frame["ground_truth"] = pd.Series([1, 10**5000, 3, 4, 5], dtype=object)
    with pytest.raises(ColumnsError, match="row 1: ground_truth is a number of 16610 bits"):
        evaluate.evaluate(frame, None)


@pytest.mark.parametrize("column", evaluate.COLUMNS)
def test_a_missing_column_is_named(column: str) -> None:
    with pytest.raises(ColumnsError, match=f"missing columns: {column} "):
        evaluate.evaluate(_frame().drop(columns=column), None)


def test_an_unknown_data_set_is_named_with_its_row() -> None:
    with pytest.raises(ColumnsError, match="row 0: unknown data set 'cifar'"):
        evaluate.evaluate(_frame().assign(dataset="cifar"), None)


def test_missing_problems_name_the_option() -> None:
    with pytest.raises(GradingError, match="--livecodebench-file"):
        evaluate.evaluate(_frame().assign(dataset="livecodebench"), None)


def test_a_run_is_reported_with_the_hash_of_its_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mlperf_log_accuracy.json").write_bytes(b"[\n]\n")
    evaluation = _run(tmp_path)
    digest = "3fbbd4c6d76130399b0c79cdf41758669224a91e05b7b216953f0c9728750865"
    lines = (tmp_path / "accuracy.txt").read_text().splitlines()
    assert lines == [evaluation.result_line, evaluation.verdict, f"hash={digest}"]
    for pattern, wanted in zip((*CHECKER, HASH), ("60.0", "4008.0", digest), strict=True):
        assert [match[1] for line in lines if (match := re.match(pattern, line))] == [wanted]
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == evaluation.result_line
    assert printed[1:-2] == evaluation.table().splitlines()
    assert printed[-2:] == [str(evaluation.sandbox), evaluation.verdict]
    pickled, parquet = (
        read_frame(tmp_path / f"results_evaluated{suffix}") for suffix in (".pkl", ".parquet")
    )
    assert pickled["extracted_answer"].tolist() == ["B", 42, "0.5", None, 8]
    assert parquet["prompt_accuracy"].tolist() == [100.0, 100.0, 100.0, 0.0, 0.0]
    report = json.loads((tmp_path / "results_report.json").read_text())
    assert report["exact_match"] == 60.0
    assert report["tasks"]["aime"]["right"] == 1
    assert report["input"]["sha256"] == digest
    assert report["sandbox"]["level"] == evaluation.sandbox.level
    assert report["livecodebench"]["mode"] == "reference"


def test_the_whole_data_set_is_not_stamped(tmp_path: Path) -> None:
    frame = pd.concat([_frame().iloc[:1].assign(tok_model_output_len=3900)] * 4388)
    evaluation = _run(tmp_path, frame)
    assert evaluation.verdict.startswith("valid: ")
    assert (tmp_path / "accuracy.txt").read_text() == evaluation.result_line + "\n"


def test_timeouts_are_wrong_and_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("grading.tasks.table.MATH_LIMIT_S", 0.5)
    frame = _frame().assign(dataset="math500", model_output=r"\boxed{9**9**9**9}", ground_truth="x")
    frame = pd.concat([_frame(), frame[:2]])
    evaluation = _run(tmp_path, frame)
    assert (evaluation.total.timeouts, evaluation.total.right) == (2, 3)
    assert evaluation.frame["grading_status"].tolist()[-2:] == ["timeout"] * 2
    assert evaluation.frame["grading_detail"].tolist()[-1] == "no reply within 0.5 s"
    evaluation.require_all()


def test_without_a_sandbox_no_formula_is_judged(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(levels, "find", lambda *_: levels.ProbeResult(None, "nothing holds here"))
        evaluation = _run(tmp_path)
    statuses = ["ok", "ok", "not_graded", "no_answer", "wrong"]
    assert evaluation.frame["grading_status"].tolist() == statuses
    assert "NOT A RESULT: 1 of 5 rows" in (tmp_path / "accuracy.txt").read_text()
    assert "sandbox: no level holds: nothing holds here\n" in capsys.readouterr().out
    with pytest.raises(GradingError, match="no sandbox level holds: nothing holds here"):
        evaluation.require_all()
    assert _run(tmp_path).frame["grading_status"].tolist()[2] == "ok"  # tried again


def test_a_process_that_can_not_start_costs_one_row(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    start = Sandbox.start
    broken: list[str] = []

    def once(self: Sandbox, module: str, limits: Limits) -> Confined:
        if not broken:
            broken.append(module)
            raise SandboxError("no more processes")
        return start(self, module, limits)

    monkeypatch.setattr(Sandbox, "start", once)
    frame = pd.concat([_frame().iloc[2:3]] * 3)
    evaluation = _run(tmp_path, frame, workers=1)
    statuses = evaluation.frame["grading_status"].tolist()
    assert sorted(statuses) == ["ok", "ok", "sandbox_error"]
    with pytest.raises(GradingError, match="no more processes"):
        evaluation.require_all()


@pytest.mark.slow
def test_what_was_graded_is_kept_by_its_content(tmp_path: Path) -> None:
    _run(tmp_path)
    path = tmp_path / "results_grades.jsonl"
    lines = path.read_text().splitlines()
    line_of = {json.loads(line)["sample_index"]: line for line in lines}
    # with another verdict, which shows that it comes from this file
    path.write_text("\n".join(line.replace('"wrong"', '"ok"') for line in lines) + "\n")
    assert _run(tmp_path).total.right == 4
    assert len(path.read_text().splitlines()) == 5
    assert _run(tmp_path, fresh=True).total.right == 3
    moved = _frame().iloc[::-1]
    assert _run(tmp_path, moved).frame["prompt_accuracy"].tolist() == [0, 0, 100, 100, 100]
    assert len(path.read_text().splitlines()) == len(line_of) == 5
    _run(tmp_path, _frame().assign(ground_truth=["A", 41, "x", "j", "8"]))
    assert len(path.read_text().splitlines()) == 9  # the fourth is the same


def test_the_opinion_of_another_package_changes_nothing(tmp_path: Path) -> None:
    pytest.importorskip("math_verify")
    frame = pd.concat([_frame(), _frame().iloc[2:3].assign(model_output="so it is $1/2$.")])
    evaluation = _run(tmp_path, frame, lenient=True)
    assert evaluation.total.right == 3
    lenient = evaluation.frame["lenient_accuracy"]
    assert [None if one != one else one for one in lenient] == [None, 100, 100, None, 0, 100]
    assert "lenient" in evaluation.table()
    assert dataclasses.replace(evaluation.total, lenient=None) == evaluation.total


def test_the_opinion_needs_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError) as caught:
        evaluate.evaluate(_frame(), None, GradingOptions(lenient=True))
    assert caught.value.name == "math_verify"
