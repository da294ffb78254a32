"""What a file is said to hold, and rows as people read them."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmark import PROMPT_TOKENS, ROWS, TASK_ROWS
from data import inspect
from data.convert import convert
from errors import UsageError
from tests import forked

ROOT = Path(__file__).parents[2]
TINY = ROOT / "data" / "tiny" / "final_output.pkl"


def call(*words: object) -> subprocess.CompletedProcess[str]:
    return forked.run("data/inspect.py", *words)


@pytest.mark.parametrize("ending", [".pkl", ".parquet", ".jsonl"])
def test_every_kind_of_file_is_said_to_hold_the_same(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a{ending}"
    convert(TINY, path)
    summary = inspect.facts(path)
    assert summary["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    expected = inspect.facts(TINY)
    for own in ("file", "bytes", "sha256"):
        del summary[own], expected[own]
    assert summary == expected
    assert summary["tasks"]["gpqa"] == 40
    kinds = {column["name"]: column["values"] for column in summary["columns"]}
    assert kinds["tok_input"] == "list of int32"
    assert kinds["tok_input_len"] == "int64"
    assert kinds["question"] == "text"
    lengths = pd.read_pickle(TINY)["tok_input_len"]
    assert summary["prompt_tokens"] == {
        "mean": lengths.mean(),
        "least": lengths.min(),
        "most": lengths.max(),
    }


def test_the_benchmark_s_rows_are_recognised(tmp_path: Path) -> None:
    names = [task for task, rows in TASK_ROWS.items() for _ in range(rows)]
    frame = pd.DataFrame({"dataset": names, "tok_input_len": [PROMPT_TOKENS] * ROWS})
    frame.to_pickle(tmp_path / "a.pkl")
    assert inspect.facts(tmp_path / "a.pkl")["differences"] == []
    assert "the benchmark's data set, by" in inspect.report(inspect.facts(tmp_path / "a.pkl"))
    frame.assign(tok_input_len=900.0).to_pickle(tmp_path / "a.pkl")
    (message,) = inspect.facts(tmp_path / "a.pkl")["differences"]
    assert message == "prompts have 900.0 tokens on average, not the benchmark's 803.8"
    frame.iloc[1:].to_pickle(tmp_path / "a.pkl")
    (message,) = inspect.facts(tmp_path / "a.pkl")["differences"]
    assert message == "931 rows of aime, not the benchmark's 932"


def test_a_result_file_s_answers_are_summed_up(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "dataset": ["gpqa", "aime1983", "else"],
            "ground_truth": pd.Series(["A", 7, None], dtype=object),
            "model_output": ["one", "", "three"],
            "tok_model_output": [[1], [], [1, 2, 3, 4, 5]],
            "finish": ["stop", "stop", "length"],
            "prompt_accuracy": [100.0, 0.0, 100.0],
        }
    )
    frame.to_pickle(tmp_path / "a.pkl")
    summary = inspect.facts(tmp_path / "a.pkl")
    assert summary["answer_tokens"] == {"mean": 2.0, "least": 0, "most": 5}
    assert summary["finish"] == {"stop": 2, "length": 1}
    assert summary["exact_match"] == pytest.approx(200 / 3)
    assert summary["tasks"] == {"aime": 1, "gpqa": 1, "unknown: else": 1}
    (truth,) = (one for one in summary["columns"] if one["name"] == "ground_truth")
    assert (truth["values"], truth["missing"]) == ("text, whole number", 1)
    message = inspect.report(summary)
    assert "answers: 2.0 tokens on average, 0 to 5" in message
    assert "finish reasons: stop 2, length 1" in message
    assert "ground_truth (text, whole number, 1 missing): the right answer" in message


def test_a_row_is_shown_with_its_texts_as_they_are(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "question": ["Which?\nA) one\nB) two"],
            "ground_truth": ["B"],
            "tok_input": [np.arange(40)],
            "other": ["x" * 500],
        }
    )
    frame.to_pickle(tmp_path / "a.pkl")
    message = inspect.show(tmp_path / "a.pkl", 0)
    assert "--- question (question)\nWhich?\nA) one\nB) two\n" in message
    assert message.endswith("--- truth (ground_truth)\nB")
    assert "tok_input: 40: [0, 1, 2, 3, 4, 5, 6, 7, …, 32, 33, 34, 35, 36, 37, 38, 39]" in message
    assert len(next(line for line in message.splitlines() if line.startswith("other"))) < 150
    with pytest.raises(UsageError, match=r"a.pkl: no row 1: rows are 0 to 0"):
        inspect.show(tmp_path / "a.pkl", 1)


def test_what_a_file_holds_steers_no_terminal(tmp_path: Path) -> None:
    attack = "\x1b[2J\x1b]0;title\x07"
    pd.DataFrame({f"question{attack}": [attack], "question": [attack], "dataset": [attack]}
                 ).to_pickle(tmp_path / "a.pkl")  # fmt: skip
    for words in ((), (0,), ("--json",), (0, "--json")):
        ended = call(tmp_path / "a.pkl", *words)
        assert ended.returncode == 0, ended.stderr
        assert "\x1b" not in ended.stdout + ended.stderr
        assert r"\x1b" in ended.stdout or r"\u001b" in ended.stdout


def test_json_holds_the_row(tmp_path: Path) -> None:
    cells = json.loads(call(TINY, 3, "--json").stdout)
    assert cells["tok_input_len"] == len(cells["tok_input"])
    assert cells["dataset"] == "aime1983"
    assert json.loads(call(TINY, "--json").stdout)["rows"] == 240


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("none.pkl",), 3, "none.pkl: can't be read: No such file"),
        ((TINY, 240), 2, "no row 240: rows are 0 to 239"),
        ((TINY, -1), 2, "argument ROW: must be 0 or more, not -1"),
        ((TINY, "a"), 2, "invalid whole_number value: 'a'"),
        ((ROOT / "README.md",), 3, "expected a .pkl"),
    ],
)
def test_bad_input_is_one_line(words: tuple[object, ...], code: int, message: str) -> None:
    ended = call(*words)
    assert ended.returncode == code
    assert message in ended.stderr.splitlines()[-1]


def test_help_needs_no_package(tmp_path: Path) -> None:
    for name in ("inspect", "convert", "schema"):
        words = [sys.executable, "-S", "-m", f"data.{name}", "--help"]
        ended = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout
