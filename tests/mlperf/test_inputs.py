"""Which rows are graded: none twice, none missing, and of the data set they are said to be of."""

import pandas as pd
import pytest

from mlperf import inputs
from ref_dsinfer.errors import GradingError, UsageError


def _frame(indices):
    return pd.DataFrame({"sample_index": indices})


@pytest.mark.parametrize("indices", [[0], [0, 1, 2], [2, 0, 1], list(range(10))])
def test_whole_or_the_first_rows(indices):
    inputs.check_rows(_frame(indices), 10)


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([0, 1, 1, 2, 2], "more than once: 1, 2"),
        ([0, 3, 4], "no answer to samples 1, 2, but to later ones"),
        ([9], "no answer to samples 0, 1, 2, 3, 4, …, but"),
        ([0, 10], "sample_index 10 is not one of 10 rows"),
        ([0, -1], "sample_index -1 is not"),
        ([0.5], "sample_index 0.5 is not"),
        ([None], "sample_index None is not"),
        (list(range(11)), "11 rows, but 10 are expected: --expected-rows"),
    ],
)
def test_rows_that_are_twice_missing_or_too_many_are_named(indices, message):
    with pytest.raises(GradingError, match=message):
        inputs.check_rows(_frame(indices), 10)


def test_rows_without_a_number_are_counted():
    inputs.check_rows(pd.DataFrame({"a": [1, 2]}), 3)
    with pytest.raises(GradingError, match="2 rows, but 1 are expected"):
        inputs.check_rows(pd.DataFrame({"a": [1, 2]}), 1)


@pytest.fixture
def files(tmp_path):
    data = pd.DataFrame({"dataset": ["aime", "gpqa", "aime"], "ground_truth": [1, "B", 3]})
    data["question"] = ["q", "r", "s"]
    data.to_pickle(tmp_path / "data.pkl")

    def results(**columns):
        data.assign(model_output="x", **columns).to_pickle(tmp_path / "results.pkl")
        return tmp_path / "results.pkl"

    return tmp_path / "data.pkl", results


def test_results_are_held_against_their_data_set(files):
    data, results = files
    frame, expected = inputs.read_results(results(), data, None)
    assert (len(frame), expected) == (3, 3)
    with pytest.raises(GradingError, match="row 1: ground_truth is not that of row 1 of"):
        inputs.read_results(results(ground_truth=[1, "C", 3]), data, None)
    path = results(sample_index=[2, 0, 1], dataset=["gpqa", "aime", "gpqa"])
    with pytest.raises(GradingError, match="row 0: dataset is not that of row 2 of"):
        inputs.read_results(path, data, None)


def test_how_many_rows_there_should_be(files):
    data, results = files
    assert inputs.read_results(results(), None, None)[1] == 4388
    assert inputs.read_results(results(), None, None, 7)[1] == 7
    assert inputs.read_results(results(), data, None, 5)[1] == 5
    with pytest.raises(GradingError, match="3 rows, but 2 are expected"):
        inputs.read_results(results(), None, None, 2)


def test_a_log_needs_data_set_and_tokenizer(tmp_path):
    log = tmp_path / "mlperf_log_accuracy.json"
    with pytest.raises(UsageError, match="--dataset-file"):
        inputs.read_results(log, None, "model")
    with pytest.raises(UsageError, match="--tokenizer"):
        inputs.read_results(log, tmp_path / "data.pkl", None)


def test_problems_lie_beside_the_data(tmp_path):
    (tmp_path / "livecodebench.jsonl").write_text("")
    near = [tmp_path / "none" / "a.pkl", tmp_path / "a.pkl"]
    assert inputs.find_problems(None, near) == tmp_path / "livecodebench.jsonl"
    with pytest.raises(GradingError, match="--livecodebench-file: no such file"):
        inputs.find_problems(tmp_path / "none", [])
