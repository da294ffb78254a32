"""Which rows are graded: none twice, none missing, and all from their data set."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from errors import GradingError, UsageError
from grading import inputs

Files = tuple[Path, Callable[..., Path]]  # the data set, and a function that writes results of it


def _frame(indices: Sequence[object] | np.ndarray) -> pd.DataFrame:
    return pd.DataFrame({"sample_index": indices})


@pytest.mark.parametrize("indices", [[0], [0, 1, 2], [2, 0, 1], list(range(10))])
def test_whole_or_the_first_rows(indices: Sequence[object] | np.ndarray) -> None:
    inputs.check_rows(_frame(indices), 10)


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([0, 1, 1, 2, 2], "more than one answer: 1, 2"),
        ([0, 3, 4], "no answers to samples 1, 2, but answers to later ones"),
        ([9], "no answers to samples 0, 1, 2, 3, 4, …, but"),
        ([0, 10], "sample_index 10 is not a row"),
        ([0, -1], "sample_index -1 is not"),
        ([0.5], "sample_index 0.5 is not"),
        ([None], "row 0: sample_index None is not"),
        (np.array([0, np.int64(-1)], dtype=object), "row 1: sample_index -1 is not a row"),
        (["\x1b[2J\n"], r"sample_index '\\x1b\[2J\\n' is not"),
        (np.array([0, 1, np.int64(1)], dtype=object), "more than one answer: 1$"),
        (list(range(11)), "11 rows, but 10 are expected: add --expected-rows"),
    ],
)
def test_rows_that_are_twice_missing_or_too_many_are_named(
    indices: Sequence[object] | np.ndarray, message: str
) -> None:
    with pytest.raises(GradingError, match=message):
        inputs.check_rows(_frame(indices), 10)


def test_rows_without_a_number_are_counted() -> None:
    inputs.check_rows(pd.DataFrame({"a": [1, 2]}), 3)
    with pytest.raises(GradingError, match="2 rows, but 1 are expected"):
        inputs.check_rows(pd.DataFrame({"a": [1, 2]}), 1)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    data = pd.DataFrame({"dataset": ["aime", "gpqa", "aime"], "ground_truth": [1, "B", 3]})
    data["question"] = ["q", "r", "s"]
    data.to_pickle(tmp_path / "data.pkl")

    def results(**columns: Any) -> Path:
        data.assign(model_output="x", **columns).to_pickle(tmp_path / "results.pkl")
        return tmp_path / "results.pkl"

    return tmp_path / "data.pkl", results


def test_results_are_held_against_their_data_set(files: Files) -> None:
    data, results = files
    frame, expected = inputs.read_results(results(), data, None)
    assert (len(frame), expected) == (3, 3)
    with pytest.raises(GradingError, match="row 1: ground_truth is not that of row 1 of"):
        inputs.read_results(results(ground_truth=[1, "C", 3]), data, None)
    path = results(sample_index=[2, 0, 1], dataset=["gpqa", "aime", "gpqa"])
    with pytest.raises(GradingError, match="row 0: dataset is not that of row 2 of"):
        inputs.read_results(path, data, None)


def test_rows_without_sample_index_are_distinguished_by_their_question(
    files: Files, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    data, results = files
    path = tmp_path / "twice.pkl"
    whole = pd.read_pickle(results())
    copies = pd.concat([whole, whole.iloc[[1]]], ignore_index=True)
    copies.to_pickle(path)
    twice = "rows 1 and 3 have the same question and answer, and no sample_index tells them apart"
    with pytest.raises(GradingError, match=twice):
        inputs.read_results(path, None, None)
    copies.assign(model_output=list("abcd")).to_pickle(path)  # of two runs
    inputs.read_results(path, None, None)
    (message,) = caplog.messages
    assert message.startswith("1 rows have the question of an earlier row (row 3 that of row 1)")
    caplog.clear()
    copies.assign(question=[*"abc", "another"]).to_pickle(path)
    inputs.read_results(path, None, None)
    copies.assign(sample_index=range(4)).to_pickle(path)
    inputs.read_results(path, None, None)
    pd.concat([pd.read_pickle(data), pd.read_pickle(data).iloc[[1]]]).to_pickle(data)
    copies.to_pickle(path)
    inputs.read_results(path, data, None)  # the data set has it twice, at these rows
    assert caplog.messages == []


def test_rows_without_number_and_question_are_warned_of(
    files: Files, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, results = files
    path = tmp_path / "bare.pkl"
    bare = pd.read_pickle(results()).drop(columns="question")
    pd.concat([bare, bare]).to_pickle(path)  # answers of a letter are often the same
    inputs.read_results(path, None, None)
    assert caplog.messages == []
    bare["model_output"] = "x" * 500
    pd.concat([bare, bare]).to_pickle(path)
    inputs.read_results(path, None, None)
    (message,) = caplog.messages
    expected = "3 rows have the answer and truth of an earlier row (row 3 that of row 0)"
    assert message.startswith(expected)


def test_how_many_rows_there_should_be(files: Files) -> None:
    data, results = files
    assert inputs.read_results(results(), None, None)[1] == 4388
    assert inputs.read_results(results(), None, None, 7)[1] == 7
    assert inputs.read_results(results(), data, None, 5)[1] == 5
    with pytest.raises(GradingError, match="3 rows, but 2 are expected"):
        inputs.read_results(results(), None, None, 2)


def test_a_log_needs_data_set_and_tokenizer(tmp_path: Path) -> None:
    log = tmp_path / "mlperf_log_accuracy.json"
    with pytest.raises(UsageError, match="--dataset-file"):
        inputs.read_results(log, None, "model")
    with pytest.raises(UsageError, match="--tokenizer"):
        inputs.read_results(log, tmp_path / "data.pkl", None)


def test_problems_lie_beside_the_data(tmp_path: Path) -> None:
    (tmp_path / "livecodebench.jsonl").write_text("")
    near = [tmp_path / "none" / "a.pkl", tmp_path / "a.pkl"]
    assert inputs.find_problems(None, near) == tmp_path / "livecodebench.jsonl"
    with pytest.raises(GradingError, match="--livecodebench-file: no such file"):
        inputs.find_problems(tmp_path / "none", [])
