"""Comparisons of result folders: what is said first, figures, samples, grades, and the page."""

import csv
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from errors import ColumnsError, InputFileError
from mlperf.compare import page, table
from mlperf.compare.pair import Pair, compare
from mlperf.compare.runs import Run, read_run
from mlperf.compare.samples import first_difference
from mlperf.run import RECORD, TIMELINE
from tests.mlperf.compare.folders import add_timeline, write_run, write_state

HOSTILE = "<script>alert(1)</script>\x1b[2J\u202e</td>"


def compared(*folders: Path) -> tuple[list[Run], list[Pair]]:
    runs = [read_run(name, folder) for name, folder in zip("ABC", folders, strict=False)]
    return runs, [compare(runs[0], other) for other in runs[1:]]


def written(folder: Path, runs: list[Run], pairs: list[Pair]) -> str:
    path = folder / "compare.html"
    page.write(runs, pairs, path)
    return path.read_text(encoding="utf-8")


@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
def test_the_first_difference_is_where_two_answers_part(one: list[int], two: list[int]) -> None:
    token = first_difference(np.array(one), np.array(two))
    if token is None:
        assert one == two
    else:
        assert one[:token] == two[:token]
        assert one[token : token + 1] != two[token : token + 1]


def test_samples_and_grades_are_compared(tmp_path: Path) -> None:
    texts = ["same", "a long text, then this", "short", *["x" * 9] * 9]
    others = ["same", "a long text, then that!", "shorter", *["x" * 9] * 9]
    right = [True] * 12
    first = write_run(tmp_path / "a", texts, right, {"exact_match": 100, "tokens_per_sample": 9})
    wrong = [False, False, *right[2:]]
    second = write_run(
        tmp_path / "b", others, wrong, {"exact_match": 83.3, "tokens_per_sample": 9.2}
    )
    runs, [pair] = compared(first, second)
    assert pair.samples
    assert (len(pair.samples), pair.samples.alike) == (12, 10)
    [one, two] = pair.samples.differences
    assert (one.sample_index, one.token, one.lengths) == (1, 20, (22, 23))
    assert (one.before, one.after) == ("a long text, then th", ("is", "at!"))
    assert (two.sample_index, two.token, two.after) == (2, 5, ("", "er"))
    assert pair.samples.grades
    assert [flip.row for flip in pair.samples.grades.flips] == [0, 1]
    figures = {figure.name: figure for figure in pair.figures}
    assert figures["exact_match"].p == 0.5
    assert figures["exact_match"].beyond_noise is False
    assert figures["tokens_per_sample"].interval
    text = table.text(runs, [pair])
    assert "samples of A and B: 12, of which 10 have the same tokens" in text
    assert "row 2, token 5: short [] or [er]" in text
    assert "only the first 2, only the second 0" in text
    content = json.loads(table.as_json(runs, [pair]))
    [samples] = [one["samples"] for one in content["pairs"]]
    assert samples["differences"][1]["first_differing_token"] == 5
    assert samples["grades"]["mcnemar_p"] == 0.5
    html = written(tmp_path, runs, [pair])
    assert "12 samples, of which 10 have the same tokens" in html
    assert "answer 1 wrong" in html


def test_the_text_of_a_model_is_text_in_every_output(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a", [HOSTILE + "1"], questions=[HOSTILE])
    second = write_run(tmp_path / "b", [HOSTILE + "2"], questions=[HOSTILE])
    runs, pairs = compared(first, second)
    html = written(tmp_path, runs, pairs)
    assert html.count("<script>") == 1  # the page's own
    assert "&lt;script&gt;alert(1)" in html
    assert "U+001B" in html
    assert "U+202E" in html
    assert "default-src &#39;none&#39;" in html
    lines = table.text(runs, pairs).splitlines()
    assert not [line for line in lines if "\x1b" in line or "\u202e" in line]
    json.loads(table.as_json(runs, pairs))


def test_other_data_are_refused_and_their_figures_marked(tmp_path: Path) -> None:
    figures = {"tokens_per_second": 100.0}
    first = write_run(tmp_path / "a", ["x"] * 3, figures=figures)
    second = write_run(tmp_path / "b", ["x"] * 3, figures=figures, questions=["?", "!", "."])
    runs, [pair] = compared(first, second)
    assert pair.samples is None
    assert pair.refusal == pair.unlike == "another data set: question of row 0 differs"
    text = table.text(runs, [pair])
    assert re.search(r"tokens/s +100 +100 +1\.000 \* ", text)
    assert f"* not a comparison of like with like: {pair.unlike}" in text
    assert f"samples of A and B: not compared: {pair.refusal}" in text
    assert pair.unlike in written(tmp_path, runs, [pair])


def test_fewer_rows_of_the_same_data_are_compared_but_not_their_figures(tmp_path: Path) -> None:
    figures = {"tokens_per_second": 100.0}
    first = write_run(tmp_path / "a", ["x", "y", "z"], figures=figures)
    second = write_run(tmp_path / "b", ["x", "yy"], figures=figures)
    _, [pair] = compared(first, second)
    assert pair.unlike == "A answered 3 rows, B 2"
    assert pair.samples
    assert len(pair.samples) == 2
    assert [one.sample_index for one in pair.samples.differences] == [1]


@pytest.mark.parametrize("key", ["mode", "test"])
def test_runs_of_two_kinds_are_marked(key: str, tmp_path: Path) -> None:
    first = write_run(tmp_path / "a", ["x"], figures={"tokens_per_second": 1.0})
    second = write_run(tmp_path / "b", ["x"], figures={"tokens_per_second": 2.0})
    record = json.loads((second / RECORD).read_text())
    (second / RECORD).write_text(json.dumps(record | {key: "server"}))
    _, [pair] = compared(first, second)
    assert pair.unlike == f"A is a run of {record[key]}, B of server"
    assert pair.figures[0].ratio == 2
    assert pair.figures[0].beyond_noise is None


@pytest.mark.parametrize(
    ("state", "error", "word"),
    [
        ("failed", "the engine failed", "the engine failed"),
        ("failed", "interrupted", "Interrupted"),
        ("running", None, "Killed"),
    ],
)
def test_a_run_that_did_not_finish_is_said_first(
    state: str, error: str | None, word: str, tmp_path: Path
) -> None:
    good = write_run(tmp_path / "a", ["x"], figures={"tokens_per_second": 1.0})
    bad = write_state(tmp_path / "b", state, error)
    runs, [pair] = compared(good, bad)
    lines = table.text(runs, [pair]).splitlines()
    first = [line for line in lines[: lines.index("")] if line.startswith(f"B, {bad}: ")]
    assert any(word in line for line in first), lines
    assert any("3 of 10 samples were finished" in line for line in first)
    assert pair.refusal == "no answers of B"
    assert pair.figures[0].ratio is None
    assert "Read this first" in written(tmp_path, runs, [pair])


def test_a_resumed_run_and_a_damaged_timeline_are_said_first(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a", ["x"], figures={"tokens_per_second": 1.0})
    add_timeline(first, [0.1], [1])
    second = write_run(
        tmp_path / "b",
        ["x"],
        figures={"tokens_per_second": 2.0},
        resumed={"samples": 1, "of": 2},
    )
    (second / TIMELINE).write_bytes(b"PAR1")
    runs, [pair] = compared(first, second)
    first_lines = "\n".join(table.warnings(runs[1:]))
    assert "1 of 2 samples were answered by an earlier run" in first_lines
    assert str(second / TIMELINE) in first_lines
    assert pair.figures[0].ratio == 2
    assert pair.figures[0].method == "not told: B has no timeline"


def test_folders_without_a_run_and_with_several_are_refused(tmp_path: Path) -> None:
    write_run(tmp_path / "one" / "offline" / "performance", ["x"])
    assert read_run("A", tmp_path / "one").title == "echo, offline, performance"
    write_run(tmp_path / "one" / "server" / "performance", ["x"])
    with pytest.raises(InputFileError, match=r"2 runs in it: pass one of .*offline/perf"):
        read_run("A", tmp_path / "one")
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "none"):
        with pytest.raises(InputFileError, match=f"{folder}: no run in it"):
            read_run("A", folder)


def test_settings_that_only_one_engine_has_are_counted(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a", ["x"], engine={"seed": 0, "same": 1})
    second = write_run(tmp_path / "b", ["x"], engine={"seed": 3, "same": 1, "eager": True})
    runs, pairs = compared(first, second)
    lines = [" ".join(line.split()) for line in table.text(runs, pairs).splitlines()]
    start = lines.index("settings that differ:")
    assert lines[start + 1 : start + 4] == [
        "A B",
        "engine.seed 0 3",
        "and 1 that only some of the runs have: see the page, or --json",
    ]
    assert json.loads(table.as_json(runs, pairs))["differences"] == {
        "engine.seed": ["0", "3"],
        "engine.eager": [None, "True"],
    }


def test_answers_that_are_no_tokens_are_named(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a", ["x"])
    second = write_run(tmp_path / "b", ["x"])
    path = second / "results.parquet"
    pd.read_parquet(path).assign(tok_model_output="x").to_parquet(path)
    with pytest.raises(ColumnsError, match=f"{second}: row 0: tok_model_output is not token ids"):
        compared(first, second)


def measured(folder: Path, ttfts: Sequence[float], tokens: Sequence[int]) -> Path:
    """A Server run with a timeline, whose figures are those of the timeline."""
    figures = {
        "tokens_per_second": float(np.mean(tokens)),
        "ttft_p50_ms": float(np.percentile(ttfts, 50)),
        "ttft_p99_ms": float(np.percentile(ttfts, 99)),
        "tpot_p50_ms": 100.0,
    }
    write_run(folder, ["x"], figures=figures, mode="server")
    add_timeline(folder, ttfts, tokens)
    return folder


def test_a_timeline_tells_differences_from_noise(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    ttfts, tokens = random.uniform(0.1, 0.2, 60), random.integers(900, 1100, 60)
    first = measured(tmp_path / "a", list(ttfts), list(tokens))
    second = measured(tmp_path / "b", list(2 * ttfts), list(random.permutation(tokens)))
    runs, [pair] = compared(first, second)
    figures = {figure.name: figure for figure in pair.figures}
    assert figures["ttft_p50_ms"].beyond_noise is True
    assert figures["tokens_per_second"].beyond_noise is False
    assert figures["tpot_p50_ms"].beyond_noise is False  # the same in every answer
    assert figures["ttft_p99_ms"].beyond_noise is None
    assert figures["ttft_p99_ms"].method == "not told: 60 answers, fewer than 500"
    interval = figures["ttft_p50_ms"].interval
    assert interval
    assert interval.low < 2 < interval.high
    rows = list(csv.DictReader(io.StringIO(table.as_csv(runs, [pair]))))
    assert [row["figure"] for row in rows if row["run"] == "A"] == list(runs[0].figures)
    [row] = [row for row in rows if (row["run"], row["figure"]) == ("B", "ttft_p50_ms")]
    assert float(row["value"]) == runs[1].figures["ttft_p50_ms"]
    assert float(row["baseline"]) == runs[0].figures["ttft_p50_ms"]
    assert row["beyond_noise"] == "True"
    html = written(tmp_path, runs, [pair])
    assert "Throughput over time" in html
    assert "Beyond noise: TTFT p50 ms." in html


def test_the_first_of_several_answers_is_compared(tmp_path: Path) -> None:
    first, second = (write_run(tmp_path / name, ["x", "y"]) for name in "ab")
    path = second / "results.parquet"
    frame = pd.read_parquet(path)
    tokens = pd.Series([[1], [1]])
    again = frame.assign(query_id=9, model_output="z", tok_model_output=tokens)
    pd.concat([frame, again]).sort_values(["sample_index", "query_id"]).to_parquet(path)
    _, [pair] = compared(first, second)
    assert pair.samples
    assert pair.samples.alike == len(pair.samples) == 2
