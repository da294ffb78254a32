"""The whole data set, of sources in every format: rows, prompts, manifest, and the command."""

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from benchmark import ROWS, TASK_ROWS
from data.prepare import __main__ as command
from data.prepare import build, formats
from data.prepare.formats import Row
from data.prepare.sources import SOURCES, find
from data.problems import Problems
from data.prompts import Prompts
from data.samples import read_frame, samples
from errors import ColumnsError, InputFileError, OutputError, UsageError
from tests import forked
from tests.data.prepare import source_files

MATH = """Here are some example problems with their final answers:

Problem: math_train_examples 40:  $x^{40}$?

Solution: It is $\\boxed{40}$.

Problem: math_train_examples 2:  $x^{2}$?

Solution: It is $\\boxed{2}$.

Problem: math_train_examples 7:  $x^{7}$?

Solution: It is $\\boxed{7}$.

Problem: math_test_examples 1:  $x^{1}$?

Solution: It is $\\boxed{1}$.

Problem: math_test_examples 0:  $x^{0}$?

Solution: It is $\\boxed{0}$.

Solve the following math problem step by step. Put your final answer inside \\boxed{answer}.

Problem: math500 0:  $x^{0}$?

Solution:"""
GPQA = """Here are some example questions with their correct answers:

Question: Example 30?
A) no
B) yes
C) wrong 1
D) 3
Explanation: because 30
Answer: B

Question: Example 4?
A) no
B) yes
C) wrong 1
D) 3
Explanation: because 4
Answer: B

Answer the following multiple choice question. The last line of your response should be in the \
following format: 'Answer: A/B/C/D' (e.g. 'Answer: A').

GPQA 0: μ, correct? \n"""
MMLU_PRO = """Answer the following multiple choice question. The last line of your response should \
be in the following format: 'Answer: A/B/C/...' (e.g. 'Answer: A').

mmlu_pro 4: two?

A) one
B) two 4
C) N/A"""
CODE = """title-1

### Question:
Do 1.

Example:
```
1
```


### Format: You will use the following starter code to write the solution to the problem and \
enclose your code within delimiters.
```python
class Solution:
    def f1(self) -> int:
        \n```
### Answer:"""


@pytest.fixture(scope="module")
def found(repositories: Path) -> build.Candidates:
    """All rows of the sources."""
    with pytest.MonkeyPatch.context() as patch:
        source_files.expect_their_examples(patch)
        return build.candidates(find(repositories))


@pytest.mark.usefixtures("examples")
def test_every_format_gives_the_same_rows(every_format: Path, found: build.Candidates) -> None:
    rows = build.chosen(build.candidates(find(every_format)))
    assert rows == build.chosen(found)
    assert len(rows) == ROWS
    assert len({row.text_input for row in rows}) == ROWS
    first = {row.dataset: row for row in reversed(rows)}
    assert list(first) == ["mmlu_pro", "math500", "livecodebench", "gpqa", "aime1983"]
    assert first["math500"].text_input == MATH
    assert first["gpqa"].text_input.startswith(GPQA)
    [code] = [row for row in rows if row.question == "title-1"]
    assert code == Row("livecodebench", "title-1", CODE, "3001", "code_execute_verify")
    [other] = [row for row in rows if row.question == "title-2"]
    assert other.text_input.endswith("```python\n# YOUR CODE HERE\n```\n### Answer:")
    assert "### Format: Read the inputs from stdin" in other.text_input
    [mmlu_pro] = [row for row in rows if row.question == "mmlu_pro 4: two?"]
    assert mmlu_pro.text_input.endswith(MMLU_PRO)
    assert mmlu_pro.text_input.count("\n\nQuestion: mmlu_pro_examples ") == 5
    assert mmlu_pro.ground_truth == "B"


def test_rows_left_out_are_those_of_the_rules(found: build.Candidates) -> None:
    rows = build.chosen(found)
    questions = {row.question for row in rows}
    aime = [row for row in source_files.rows_of("aime") if row["Question"] not in questions]
    assert [row["Answer"] for row in aime] == ["080 or 081 (both were accepted)"]
    math = [row for row in source_files.rows_of("math500") if row["problem"] not in questions]
    assert [row["unique_id"] for row in math] == ["test/algebra/499.json"]
    chosen = [row for row in source_files.rows_of("mmlu_pro") if row["question"] in questions]
    categories = pd.Series([row["category"] for row in chosen]).value_counts()
    assert categories.drop("category 12").between(200, 201).all()  # of 1000 each


def test_choices_are_in_an_order_that_only_the_row_decides(found: build.Candidates) -> None:
    questions = found["gpqa"]
    letters = pd.Series([variants[0].ground_truth for variants in questions]).value_counts()
    assert letters.index.size == 4
    assert letters.min() > 25  # of 198: it is no constant
    for variants in questions[:9]:
        assert len({variant.text_input for variant in variants}) == 24
        for variant in variants:
            [line] = [line for line in variant.text_input.splitlines() if ") right" in line]
            assert line[0] == variant.ground_truth


@pytest.mark.slow
def test_the_official_row_of_aime_has_the_official_token_ids(r1_model: Path) -> None:
    # row and ids as published in mlcommons/endpoints, tests/assets/datasets/ds_samples.jsonl
    question = (
        "How many of the integers between 1 and 1000, inclusive, can be expressed as the difference"
        " of the squares of two nonnegative integers?"
    )
    rows = formats.aime([{"Question": question, "Answer": "750"}])
    frame = build.data_set(rows, Prompts(r1_model))
    ids = frame["tok_input"][0].tolist()
    assert (len(ids), ids[:6], ids[-6:]) == (
        69,
        [0, 128803, 28218, 270, 2502, 7704],
        [1240, 24574, 28, 128804, 128798, 201],
    )
    assert frame["templated_text_input"][0].endswith("\n\nSolution:<｜Assistant｜><think>\n")
    assert [frame[name][0] for name in ("dataset", "ground_truth", "metric")] == [
        "aime1983",
        "750",
        "exact_match",
    ]


def test_examples_of_another_revision_are_refused(repositories: Path) -> None:
    with pytest.raises(InputFileError, match="MATH: example 1 of 5 in the official prompts is not"):
        build.candidates(find(repositories))


def test_choices_that_are_no_list_of_texts_are_refused() -> None:
    for options in ("[1", "no", [], ["one"], ["a", 1], ["a"] * 11, None):
        with pytest.raises(ColumnsError, match="options of the question 'q' are not a list of 2"):
            formats._options({"question": "q", "options": options})


def call(*options: object) -> None:
    """Run the command in this process."""
    parser = argparse.ArgumentParser()
    command.add_options(parser)
    command.run(parser.parse_args(list(map(str, options))))


@pytest.fixture(scope="module")
def built(repositories: Path, echo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole set, built by the command."""
    folder = tmp_path_factory.mktemp("built")
    options = (
        "--sources",
        repositories,
        "--model",
        echo_model,
        "--output-file",
        folder / "set.pkl",
    )
    with pytest.MonkeyPatch.context() as patch:
        source_files.expect_their_examples(patch)
        call(*options, "--problems-file", folder / "livecodebench.sqlite")
    return folder / "set.pkl"


@pytest.mark.slow
def test_the_command_builds_the_whole_set(built: Path, echo_model: Path) -> None:
    frame, same = read_frame(built), read_frame(built.with_suffix(".parquet"))
    assert len(samples(frame)) == ROWS
    assert [one.prompt_text for one in samples(frame)] == same["text_input"].tolist()
    prompts = Prompts(echo_model)
    for row in (0, 1000, 4387):
        assert tuple(frame["tok_input"][row]) == prompts.ids(frame["text_input"][row])
        assert len(frame["tok_input"][row]) == frame["tok_input_len"][row]
        assert list(same["tok_input"][row]) == list(frame["tok_input"][row])
        assert prompts.plain(frame["tok_input"][row]) == frame["templated_text_input"][row]
    problems = Problems(built.with_name("livecodebench.sqlite"))
    ids = frame["ground_truth"][frame["dataset"] == "livecodebench"]
    assert len(ids) == TASK_ROWS["livecodebench"]
    assert all(one in problems for one in ids)

    manifest = json.loads(built.with_name("set_manifest.json").read_text())
    assert manifest["rows"] == ROWS
    assert manifest["tokens"]["mean"] == round(frame["tok_input_len"].mean(), 1)
    assert manifest["tokens"]["longest"] == frame["tok_input_len"].max()
    for path in (built, built.with_suffix(".parquet")):
        assert manifest["files"][path.name] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert list(manifest["sources"]) == list(SOURCES)
    assert manifest["sources"]["gpqa"]["licence"] == "CC-BY-4.0"
    assert manifest["sources"]["math500"]["is_pinned"] is False
    assert manifest["sources"]["mmlu_pro"]["is_pinned"] is None


def test_an_official_files_rows_are_chosen_and_found_equal(
    examples: None,
    found: build.Candidates,
    repositories: Path,
    echo_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = [
        found["mmlu_pro"][7][0],
        found["gpqa"][3][17],  # another order of the choices
        found["math500"][499][0],  # which the rules leave out
        *(one[0] for one in found["aime"][900:]),
    ]
    build.data_set(rows, Prompts(echo_model)).to_pickle(tmp_path / "official.pkl")
    sources = ("--sources", repositories, "--model", echo_model)
    output = tmp_path / "like.pkl"
    like = ("--like", tmp_path / "official.pkl", "--output-file", output)
    call(*sources, *like)
    assert f"{len(rows)} rows" in capsys.readouterr().out
    assert read_frame(output)["text_input"].tolist() == [row.text_input for row in rows]
    assert not (tmp_path / "like_differences.jsonl").exists()


def test_every_row_that_differs_from_an_official_file_is_named(
    examples: None,
    found: build.Candidates,
    repositories: Path,
    echo_model: Path,
    tmp_path: Path,
) -> None:
    frame = build.data_set([one[0] for one in found["aime"][:9]], Prompts(echo_model))
    frame.loc[2, "text_input"] = frame["text_input"][2].replace("step by step", "quickly")
    frame.loc[3, "question"] = "Nobody asked this?"
    frame.loc[4, "ground_truth"] = "5"
    tokens = frame["tok_input"].tolist()
    frame["tok_input"] = [[0, *ids] if row == 5 else ids for row, ids in enumerate(tokens)]
    frame.loc[6, "question"] = f"  {frame['question'][6]} "  # is still the same
    frame.to_pickle(tmp_path / "official.pkl")
    output = tmp_path / "like.pkl"
    options = ("--sources", repositories, "--model", echo_model, "--output-file", output)
    with pytest.raises(InputFileError, match=r"4 rows differ from those of .*: all are in "):
        call(*options, "--like", tmp_path / "official.pkl")
    lines = (tmp_path / "like_differences.jsonl").read_text().splitlines()
    message = [json.loads(line) for line in lines]
    assert [(one["row"], one["column"]) for one in message] == [
        (2, "text_input"),
        (3, None),
        (4, "ground_truth"),
        (5, "tok_input"),
    ]
    assert message[0]["official"].startswith("quickly. The final line")
    assert message[0]["ours"].startswith("step by step. The final line")
    assert (message[2]["ours"], message[2]["official"]) == ("4", "5")
    assert len(read_frame(output)) == 8
    frame.iloc[3:4].to_pickle(tmp_path / "official.pkl")
    with pytest.raises(InputFileError, match="none of its rows is in the sources"):
        call(*options, "--like", tmp_path / "official.pkl")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--stratified"], "--stratified needs --subset N"),
        (["--calibration", "--subset", "5"], "--calibration is a --subset of its own"),
        (["--input-file", "a.pkl"], "add --subset N or --calibration"),
        (["--input-file", "a.pkl", "--subset", "5", "--like", "b.pkl"], "--like is for building"),
        ([], "add --model, or set MLPERF_MODEL"),
    ],
    ids=range(5),
)
def test_options_that_contradict_are_refused(
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MLPERF_MODEL", raising=False)
    with pytest.raises(UsageError, match=message):
        call("--output-file", tmp_path / "a.pkl", *options)


def test_outputs_never_replace_inputs(data_set: Any, echo_model: Path, tmp_path: Path) -> None:
    path = data_set(9)
    with pytest.raises(UsageError, match="would overwrite the input"):
        call("--input-file", path, "--subset", 3, "--output-file", path)
    source_files.write_all(tmp_path, ".parquet")
    sources = ("--sources", tmp_path, "--model", echo_model)
    with pytest.raises(UsageError, match="would overwrite the input"):
        call(*sources, "--output-file", tmp_path / "aime.pkl")
    problems = ("--problems-file", tmp_path / "livecodebench.parquet")
    with pytest.raises(UsageError, match="would overwrite the input"):
        call(*sources, "--output-file", tmp_path / "set.pkl", *problems)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        call(
            "--input-file",
            path,
            "--subset",
            3,
            "--output-file",
            tmp_path / "file" / "a.pkl",
        )


def test_the_command_names_missing_sources_without_a_traceback(
    tmp_path: Path, echo_model: Path
) -> None:
    options = ["--sources", tmp_path, "--model", echo_model, "--output-file", tmp_path / "a.pkl"]
    ended = forked.run("data/prepare/__main__.py", *options)
    assert ended.returncode == InputFileError.exit_code
    assert ended.stderr.startswith("error: 9 of 9 sources are missing:\n  aime: none of aime.csv")
    assert not (tmp_path / "a.pkl").exists()
