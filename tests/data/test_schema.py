"""Columns by all their names, and data sets that have token ids instead of texts."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from backends.types import EngineConfig
from data import schema, workload
from data.samples import read_frame, samples
from errors import ColumnsError
from tests.conftest import EOS_ID, Script

BOS_ID, USER_ID, ASSISTANT_ID = 0, 2, 3
ROOT = Path(__file__).parents[2]
FIRST, VOCABULARY = 4, 260  # ids of `echo_model` from the first byte on


def ids_frame(name: str = "input_tokens", rows: int = 3) -> pd.DataFrame:
    """The columns of the endpoints benchmark's parquet; row n has n + 70 ids."""
    lists = [
        [BOS_ID, USER_ID, *[FIRST + 30 + row] * (67 + row), ASSISTANT_ID] for row in range(rows)
    ]
    return pd.DataFrame(
        {
            name: lists,
            "ground_truth": ["A"] * rows,
            "dataset": ["gpqa"] * rows,
            "question": [f"question {row}" for row in range(rows)],
        }
    )


def write(frame: pd.DataFrame, path: Path) -> Path:
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    elif path.suffix == ".pkl":
        frame.to_pickle(path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in frame.to_dict("records")))
    return path


def build(path: Path, model: Path) -> workload.Workload:
    return workload.build(path, None, EngineConfig(str(model)), 50)


@pytest.mark.parametrize("name", ["input_tokens", "tok_input"])
@pytest.mark.parametrize("suffix", [".parquet", ".pkl", ".jsonl"])
def test_a_file_without_texts_runs_from_its_ids(
    echo_model: Path, tmp_path: Path, name: str, suffix: str
) -> None:
    frame = ids_frame(name)
    built = build(write(frame, tmp_path / f"a{suffix}"), echo_model)
    assert [list(ids) for ids in built.prompt_ids] == frame[name].tolist()
    assert [row.prompt_text for row in built.samples] == [""] * 3
    assert set(map(type, built.prompt_ids[0])) == {int}
    assert built.request(5, 1).stop_ids == {EOS_ID}


def test_texts_come_before_ids(echo_model: Path, tmp_path: Path) -> None:
    frame = ids_frame().assign(text_input=["one", "two", "three"])
    found = build(write(frame, tmp_path / "a.parquet"), echo_model)
    assert found.prompt_ids[1] == found.prompts.ids("two")
    assert found.samples[1].prompt_ids is None


def test_a_run_from_ids_gives_results(script: Script, tmp_path: Path) -> None:
    path = write(ids_frame(), tmp_path / "ids.parquet")
    code, _, err = script.run("run_eval.py", "--input-file", path, "--output-file", "a.pkl")
    assert code == 0, err
    assert "3 of 3 rows, whose token ids are used as they are" in err
    results = read_frame(tmp_path / "a.pkl")
    assert list(results["input_tokens"][2]) == ids_frame()["input_tokens"][2]
    assert all("A" <= text[5] <= "z" for text in results["model_output"])  # echo's: the prompt


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ([BOS_ID, VOCABULARY], r"row 1: token id 260 at position 1 .* vocabulary of 260: is it"),
        ([BOS_ID, -1], "row 1: token id -1 at position 1"),
        ([FIRST, FIRST], "row 1: the prompt starts with token id 4, not with BOS, 0"),
        ([], "row 1: input_tokens has no token ids"),
        ("text", "row 1: input_tokens is 'text', not a list of token ids"),
        (None, "row 1: input_tokens is None, not a list"),
        ([0, 1.5], r"row 1: input_tokens is \[0, 1.5\], not a list"),
        ([0, "a"], r"row 1: input_tokens is \[0, 'a'\], not a list"),
        ([0, True], r"row 1: input_tokens is \[0, True\], not a list"),
        ([[0]], r"row 1: input_tokens is \[\[0\]\], not a list"),
        (np.array([0.5] * 80), "row 1: input_tokens is array"),
    ],
)
def test_ids_that_are_none_are_named(
    echo_model: Path, tmp_path: Path, cell: object, message: str
) -> None:
    frame = ids_frame()
    frame["input_tokens"] = pd.Series([frame["input_tokens"][0], cell, [0, 1]], dtype=object)
    path = write(frame, tmp_path / "a.pkl")
    with pytest.raises(ColumnsError, match=f"^{path}: {message}"):
        build(path, echo_model)


def test_lengths_that_are_others_are_named(tmp_path: Path) -> None:
    frame = ids_frame("tok_input").assign(tok_input_len=[70, 71, 9])
    with pytest.raises(ColumnsError, match="row 2: tok_input_len is 9, but tok_input has 72"):
        samples(frame)


def test_the_first_spelling_is_taken() -> None:
    assert schema.spelling(["input_tokens", "tok_input"], "tok_input") == "tok_input"
    assert schema.spelling(["a", "input_tokens"], "tok_input") == "input_tokens"
    assert schema.spelling(["a"], "tok_input") is None


def test_no_name_is_two_columns() -> None:
    names = [name for one in schema.COLUMNS.values() for name in (one.name, *one.spellings)]
    assert len(names) == len(set(names))
    assert schema.FOR_RUN == ("dataset", "question", "text_input", "ground_truth")
    assert schema.FOR_GRADING == ("dataset", "ground_truth", "model_output", "tok_model_output_len")


def test_the_page_has_the_table() -> None:
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    assert schema.table() in page, "copy the output of: python -m data.schema"


@pytest.mark.parametrize("tool", ["inspect", "convert"])
def test_the_page_s_commands_run(tmp_path: Path, tool: str) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "tiny").symlink_to(ROOT / "data" / "tiny")
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    commands = re.findall(rf"^python (-m data\.{tool} .*)$", page, re.MULTILINE)
    assert commands
    for words in commands:
        subprocess.run(
            [sys.executable, *words.split()],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            check=True,
            capture_output=True,
        )
