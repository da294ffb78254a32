"""Totals, the verdict, and what is printed and written."""

import ast
import re

import pandas as pd
import pytest

from data.samples import read_frame
from mlperf import evaluate
from mlperf.figures import Evaluation, Totals
from ref_dsinfer.errors import ColumnsError, GradingError, UsageError

# as the official submission checker looks for them
CHECKER = (r".*'exact_match':\s([\d.]+).*", r".*'tokens_per_sample':\s([\d.]+).*")


def _frame():
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


def test_totals_count_every_row():
    evaluation = evaluate.evaluate(_frame(), None)
    assert evaluation.total == Totals("all", 5, 60.0, 4008.0, 1, 2, 0)
    assert [totals.task for totals in evaluation.tasks] == ["gpqa", "mmlu_pro", "math500", "aime"]
    assert evaluation.tasks[3] == Totals("aime", 2, 50.0, 10012.5, 0, 1, 0)
    assert evaluation.frame["extracted_answer"].tolist() == ["B", 42, "0.5", None, 8]
    assert evaluation.frame["prompt_accuracy"].tolist() == [100.0, 100.0, 100.0, 0.0, 0.0]
    assert evaluation.frame["grading_error"].tolist() == [None] * 5
    assert evaluation.verdict == "not comparable with the official limits: 5 of 4388 rows"


def test_the_line_is_what_the_checker_reads():
    line = evaluate.evaluate(_frame(), None).result_line
    assert ast.literal_eval(line) == {
        "exact_match": 60.0,
        "tokens_per_sample": 4008.0,
        "num-samples": 5,
    }
    assert [float(re.match(pattern, line)[1]) for pattern in CHECKER] == [60.0, 4008.0]


@pytest.mark.parametrize(
    ("rows", "right", "tokens", "verdict"),
    [
        (4388, 81.0, 3886.0, "valid: exact_match reaches 80.5446"),
        (4388, 80.54, 3886.0, "NOT VALID: exact_match is below"),
        (
            4388,
            81.0,
            3497.6,
            "NOT VALID: exact_match reaches 80.5446, tokens_per_sample is outside",
        ),
        (4388, 81.0, 4274.9, "NOT VALID"),
        (4387, 81.0, 3886.0, "not comparable with the official limits: 4387 of 4388 rows"),
    ],
)
def test_the_verdict_is_for_the_whole_data_set(rows, right, tokens, verdict):
    total = Totals("all", rows, right, tokens, 0, 0, 0)
    assert Evaluation(pd.DataFrame(), [], total).verdict.startswith(verdict)


@pytest.mark.parametrize("value", [None, float("nan"), -1, "x", [1]])
def test_a_length_that_is_no_number_is_named(value):
    frame = _frame()
    lengths = [1, 2, value, 3, 4]
    frame["tok_model_output_len"] = pd.Series(lengths, frame.index, dtype=object)
    with pytest.raises(ColumnsError, match="row 2: tok_model_output_len is"):
        evaluate.evaluate(frame, None)


@pytest.mark.parametrize("column", evaluate.COLUMNS)
def test_a_missing_column_is_named(column):
    with pytest.raises(ColumnsError, match=f"missing columns: {column} "):
        evaluate.evaluate(_frame().drop(columns=column), None)


def test_an_unknown_data_set_is_named_with_its_row():
    with pytest.raises(ColumnsError, match="row 0: unknown data set 'cifar'"):
        evaluate.evaluate(_frame().assign(dataset="cifar"), None)


def test_missing_problems_name_the_option(tmp_path):
    frame = _frame().assign(dataset="livecodebench")
    with pytest.raises(GradingError, match="--livecodebench-file"):
        evaluate.evaluate(frame, None)
    with pytest.raises(GradingError, match="--livecodebench-file: no such file"):
        evaluate.find_problems(tmp_path / "none", [])


def test_problems_lie_beside_the_data(tmp_path):
    (tmp_path / "livecodebench.jsonl").write_text("")
    near = [tmp_path / "none" / "a.pkl", tmp_path / "a.pkl"]
    assert evaluate.find_problems(None, near) == tmp_path / "livecodebench.jsonl"


def test_a_run_is_reported_with_the_hash_of_its_log(tmp_path, capsys):
    (tmp_path / "mlperf_log_accuracy.json").write_bytes(b"[\n]\n")
    evaluation = evaluate.evaluate_and_report(_frame(), tmp_path / "data.pkl", None, tmp_path)
    assert (tmp_path / "accuracy.txt").read_text().splitlines() == [
        evaluation.result_line,
        "hash=3fbbd4c6d76130399b0c79cdf41758669224a91e05b7b216953f0c9728750865",
    ]
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == evaluation.result_line
    assert printed[1:-1] == evaluation.table().splitlines()
    pickled, parquet = (
        read_frame(tmp_path / f"results_evaluated{suffix}") for suffix in (".pkl", ".parquet")
    )
    assert pickled["extracted_answer"].tolist() == ["B", 42, "0.5", None, 8]
    assert parquet["prompt_accuracy"].tolist() == [100.0, 100.0, 100.0, 0.0, 0.0]


def test_rows_that_cannot_be_judged_are_counted_and_said(monkeypatch, caplog, tmp_path):
    monkeypatch.setattr("data.tasks.grading.MATH_LIMIT_S", 0.5)
    frame = _frame().assign(dataset="math500", model_output=r"\boxed{9**9**9**9}", ground_truth="x")
    evaluation = evaluate.evaluate_and_report(frame[:2], tmp_path / "d.pkl", None, tmp_path)
    assert (evaluation.total.errors, evaluation.exact_match) == (2, 0.0)
    assert all("timeout" in error for error in evaluation.frame["grading_error"])
    assert "2 rows could not be judged" in caplog.text
    assert "hash" not in (tmp_path / "accuracy.txt").read_text()


@pytest.mark.parametrize("limit", [0, -1, float("nan"), float("inf")])
def test_a_time_limit_that_is_none(tmp_path, limit):
    with pytest.raises(UsageError, match="--time-limit"):
        evaluate.evaluate_file(tmp_path / "a.pkl", None, None, None, None, limit)


def test_a_log_needs_data_set_and_model(tmp_path):
    log = tmp_path / "mlperf_log_accuracy.json"
    with pytest.raises(UsageError, match="--dataset-file"):
        evaluate.read_results(log, None, "model")
    with pytest.raises(UsageError, match="--model"):
        evaluate.read_results(log, tmp_path / "data.pkl", None)
