"""Smaller sets: their shares, their choice, and errors as likely as they are said to be."""

import json
import random
from itertools import pairwise
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmark import (
    ANSWER_TOKENS,
    ANSWER_TOKENS_DEVIATION,
    CALIBRATION_ROWS,
    TASK_ROWS,
    TASK_SCORES,
)
from data.prepare import subset
from data.samples import read_frame, row_task
from errors import ColumnsError, UsageError
from tests.data.prepare.test_build import call


def whole_set(seed: int = 0) -> pd.DataFrame:
    """Rows with the benchmark's tasks, and lengths that differ."""
    rng = np.random.default_rng(seed)
    names = [task for task, rows in TASK_ROWS.items() for _ in range(rows)]
    return pd.DataFrame(
        {
            "dataset": names,
            "text_input": [f"row {row}" for row in range(len(names))],
            "tok_input_len": rng.lognormal(6.5, 0.5, len(names)).astype(int),
        }
    )


WHOLE = whole_set()
SUBSETS, ANSWERS = 8, 50


@given(st.lists(st.integers(0, 3000), min_size=1, max_size=30), st.floats(0, 1))
@settings(max_examples=300, deadline=None)
def test_shares_are_in_proportion(sizes: list[int], part: float) -> None:
    whole = sum(sizes)
    count = int(part * whole)
    if not whole:
        return
    options = subset.shares(sizes, count)
    assert sum(options) == count
    for size, share in zip(sizes, options, strict=True):
        assert 0 <= share <= size
        assert abs(share - count * size / whole) < 1


def test_strata_are_tasks_in_quarters_by_length() -> None:
    groups = subset.strata(WHOLE, stratified=True)
    assert [group.task for group in groups] == [
        task for task in sorted(TASK_ROWS) for _ in range(4)
    ]
    assert sorted(row for group in groups for row in group.rows) == list(range(len(WHOLE)))
    lengths = [WHOLE["tok_input_len"].iloc[list(group.rows)] for group in groups]
    for start in range(0, len(groups), 4):
        quarters = lengths[start : start + 4]
        assert all(a.max() <= b.min() for a, b in pairwise(quarters))
        assert max(map(len, quarters)) - min(map(len, quarters)) <= 1


def test_the_choice_is_the_seeds_and_no_other() -> None:
    groups = subset.strata(WHOLE, stratified=True)
    drawn = subset.draw(groups, 100, seed=0)
    assert drawn == subset.draw(groups, 100, seed=0)
    assert drawn != subset.draw(groups, 100, seed=1)
    assert drawn[0][:4] == [61, 386, 436, 608]  # and stays so, whatever Python's version
    tasks = pd.Series([row_task(row, WHOLE["dataset"][row]) for part in drawn for row in part])
    for task, rows in TASK_ROWS.items():
        assert abs((tasks == task).sum() - 100 * rows / len(WHOLE)) < 4


@pytest.mark.parametrize("stratified", [True, False])
@pytest.mark.parametrize("count", [60, 400, 3000])
def test_errors_are_as_likely_as_they_are_said_to_be(count: int, stratified: bool) -> None:
    """For each of some subsets many times other answers; a task's rows differ in difficulty."""
    rng = np.random.default_rng(count)
    tasks = WHOLE["dataset"].to_numpy()
    published = np.array([TASK_SCORES[task] / 100 for task in tasks])
    groups = subset.strata(WHOLE, stratified)
    shape = (ANSWER_TOKENS / ANSWER_TOKENS_DEVIATION) ** 2
    inside = {"score": 0, "tokens_per_sample": 0}
    for seed in range(SUBSETS):
        drawn = subset.draw(groups, count, seed)
        rows = [row for part in drawn for row in part]
        margins = subset.margins(groups, drawn)
        for _ in range(ANSWERS):
            # some rows are certain, others not, and their mean is what is published
            is_easy = rng.random(len(tasks)) < 0.5
            right = rng.random(len(tasks)) < np.where(is_easy, published * (2 - published),
                                                      published**2)  # fmt: skip
            tokens = rng.gamma(shape, ANSWER_TOKENS / shape, len(tasks))
            for name, values in (("score", 100.0 * right), ("tokens_per_sample", tokens)):
                error = values[rows].mean() - values.mean()
                inside[name] += margins[name].low <= error <= margins[name].high
    times = SUBSETS * ANSWERS
    for seen in inside.values():
        assert abs(seen / times - 0.95) <= 3.5 * sqrt(0.95 * 0.05 / times)


def test_strata_make_the_error_smaller() -> None:
    errors = {}
    for stratified in (True, False):
        groups = subset.strata(WHOLE, stratified)
        errors[stratified] = subset.margins(groups, subset.draw(groups, 400, 0))["score"]
    assert errors[True].standard_error < errors[False].standard_error < 2
    assert abs(errors[True].bias) < 0.2


def test_references_own_answers_are_used_where_there_are_any() -> None:
    rng = random.Random(0)
    frame = WHOLE.assign(
        ref_accuracy=[100.0 * (rng.random() < 0.5) for _ in range(len(WHOLE))],
        tok_ref_output_len=[1000 + rng.randrange(9) for _ in range(len(WHOLE))],
    )
    groups = subset.strata(frame, stratified=True)
    assert all(35 < group.score < 65 for group in groups)
    assert subset.margins(groups, subset.draw(groups, 400, 0))["tokens_per_sample"].high < 1


def test_all_rows_have_no_error() -> None:
    groups = subset.strata(WHOLE, stratified=True)
    drawn = subset.draw(groups, len(WHOLE), 0)
    for one in subset.margins(groups, drawn).values():
        assert (round(one.low, 9), round(one.high, 9)) == (0, 0)


def test_the_command_draws_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = WHOLE.assign(question=WHOLE["text_input"], ground_truth="A")
    frame.to_parquet(tmp_path / "whole.parquet")
    options: list[Any] = ["--input-file", tmp_path / "whole.parquet"]
    call(*options, "--subset", 200, "--stratified", "--output-file", tmp_path / "small.pkl")
    message = capsys.readouterr().out
    assert "200 of 4388 rows. For 95 of 100 such subsets" in message
    assert "percentage points (standard error 2." in message
    small = read_frame(tmp_path / "small.pkl")
    rows = [int(text.split()[1]) for text in small["text_input"]]
    assert rows == sorted(rows)
    manifest = json.loads((tmp_path / "small_manifest.json").read_text())
    assert manifest["subset"]["stratified"] is True
    assert sum(one["rows"] for one in manifest["subset"]["strata"]) == len(small) == 200
    shortest, longest = manifest["subset"]["strata"][0]["length"]
    assert WHOLE["tok_input_len"].min() <= shortest < longest < WHOLE["tok_input_len"].median()
    assert manifest["input_file"] == "whole.parquet"

    call(*options, "--calibration", "--output-file", tmp_path / "calibration.pkl")
    assert len(read_frame(tmp_path / "calibration.pkl")) == CALIBRATION_ROWS
    with pytest.raises(UsageError, match="5000 rows can't be drawn from 4388"):
        call(*options, "--subset", 5000, "--output-file", tmp_path / "small.pkl")


def test_a_file_without_token_counts_is_divided_by_characters() -> None:
    frame = pd.DataFrame(
        {"dataset": ["gpqa"] * 8, "text_input": ["x" * n for n in range(8, 0, -1)]}
    )
    groups = subset.strata(frame, stratified=True)
    assert [list(group.rows) for group in groups] == [[7, 6], [5, 4], [3, 2], [1, 0]]
    assert "prompt_tokens" not in subset.describe(frame, groups, subset.draw(groups, 4, 0))


@pytest.mark.parametrize(
    ("column", "cell", "message"),
    [
        ("tok_input_len", None, "row 3: tok_input_len is nan, not a number up to 1e"),
        ("tok_input_len", "7", "row 3: tok_input_len is '7', not a number"),
        ("ref_accuracy", 101.0, "row 3: ref_accuracy is 101.0, not a number up to 100"),
        ("text_input", None, "row 3: text_input is missing, not text"),
        ("dataset", "none", "row 3: unknown data set 'none'"),
    ],
)
def test_columns_that_hold_something_else_are_named(
    tmp_path: Path, column: str, cell: Any, message: str
) -> None:
    frame = WHOLE.head(8).assign(ref_accuracy=50.0)
    frame[column] = [cell if row == 3 else one for row, one in enumerate(frame[column])]
    frame.to_pickle(tmp_path / "whole.pkl")
    options = ("--subset", 4, "--stratified", "--output-file", tmp_path / "small.pkl")
    with pytest.raises(ColumnsError, match=message) as raised:
        call("--input-file", tmp_path / "whole.pkl", *options)
    assert str(raised.value).startswith(f"{tmp_path / 'whole.pkl'}: ")
