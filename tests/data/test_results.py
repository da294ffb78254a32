"""Journal, results frame and the files they are kept in."""

import json
import os

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backends.types import Completion
from data.results import Journal, check_writable, read_journal, results_frame, write_frame
from data.samples import read_frame
from errors import InputFileError, OutputError


class Spelled:
    """Stands where Prompts does: a text that shows the ids."""

    def text(self, ids):
        return " ".join(map(str, ids))


COMPLETIONS = [
    (1, Completion(12, (5, 6, 7), "stop", 100, 200)),
    (0, Completion(30, (), "stop", 150, 150)),
    (1, Completion(3, (8,), "length", 1, 2)),
]


def _journal(path, rows=COMPLETIONS):
    with Journal(path) as journal:
        for index, completion in rows:
            journal.add(index, completion)
    return path


def test_a_journal_gives_back_what_it_was_given(tmp_path):
    assert read_journal(_journal(tmp_path / "j.jsonl")) == COMPLETIONS
    assert read_journal(_journal(tmp_path / "j.jsonl", [])) == []


def test_a_line_is_on_disk_as_soon_as_it_is_added(tmp_path):
    with Journal(tmp_path / "j.jsonl") as journal:
        for count, (index, completion) in enumerate(COMPLETIONS, 1):
            journal.add(index, completion)
            assert len(read_journal(tmp_path / "j.jsonl")) == count


def test_a_torn_last_line_is_skipped_wherever_it_is_torn(tmp_path):
    path = _journal(tmp_path / "j.jsonl")
    whole = path.read_bytes()
    last = whole.rstrip(b"\n").rfind(b"\n") + 1
    for end in range(last, len(whole)):
        path.write_bytes(whole[:end])
        assert read_journal(path) == COMPLETIONS[:2]


@pytest.mark.parametrize(
    "line",
    ["", "{}", "[]", "{", "[" * 200_000, '{"sample_index": 1}', "\udcff"],
    ids=range(7),
)
def test_a_bad_line_elsewhere_is_named(tmp_path, line):
    path = _journal(tmp_path / "j.jsonl")
    first, rest = path.read_bytes().split(b"\n", 1)
    path.write_bytes(first + b"\n" + line.encode(errors="surrogateescape") + b"\n" + rest)
    with pytest.raises(InputFileError, match="line 2 is not a finished answer"):
        read_journal(path)


@pytest.mark.parametrize(
    "change",
    [
        {"token_ids": [1.5]},
        {"token_ids": ["1"]},
        {"token_ids": None},
        {"finish": "done"},
        {"finish": []},
        {"request_id": True},
        {"first_ns": None},
        {"extra": 1},
    ],
    ids=str,
)
def test_a_line_of_other_values_is_named(tmp_path, change):
    path = _journal(tmp_path / "j.jsonl", COMPLETIONS[:1])
    path.write_text(json.dumps(json.loads(path.read_text()) | change) + "\n")
    with pytest.raises(InputFileError, match="line 1"):
        read_journal(path)


@given(st.binary(max_size=80))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_wild_bytes_are_a_named_error_or_nothing(tmp_path, content):
    (tmp_path / "j").write_bytes(content)
    try:
        assert read_journal(tmp_path / "j") == []
    except InputFileError:
        assert b"\n" in content


def test_a_journal_that_cannot_be_written(tmp_path):
    with pytest.raises(OutputError, match="can't be written"):
        Journal(tmp_path / "none" / "j.jsonl")
    with pytest.raises(InputFileError, match="can't be read"):
        read_journal(tmp_path / "none")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")  # noqa: PTH110
def test_a_full_disk_is_said():
    with Journal("/dev/full") as journal, pytest.raises(OutputError, match="No space"):
        journal.add(*COMPLETIONS[0])


def _frame():
    return pd.DataFrame(
        {"dataset": ["gpqa", "aime"], "ground_truth": ["A", 3], "tok_input": [[1], [2, 3]]}
    )


def test_a_results_frame_has_a_row_an_answer_in_order():
    results = results_frame(_frame(), COMPLETIONS, Spelled(), "echo")
    assert results["sample_index"].tolist() == [0, 1, 1]
    assert results["query_id"].tolist() == [30, 3, 12]
    assert results["dataset"].tolist() == ["gpqa", "aime", "aime"]
    assert results["ground_truth"].tolist() == ["A", 3, 3]
    assert results["model_output"].tolist() == ["", "8", "5 6 7"]
    assert [ids.tolist() for ids in results["tok_model_output"]] == [[], [8], [5, 6, 7]]
    assert results["tok_model_output_len"].tolist() == [0, 1, 3]
    assert results["finish"].tolist() == ["stop", "length", "stop"]
    assert results["model_backend"].tolist() == ["echo"] * 3
    again = results_frame(results, [(0, COMPLETIONS[0][1])], Spelled(), "other")
    assert again.columns.is_unique
    assert again["model_backend"].tolist() == ["other"]


@pytest.mark.parametrize("name", ["out", "out.pkl", "out.parquet", "out.pickle", "v1.5"])
def test_both_twins_are_written_and_say_the_same(tmp_path, name):
    results = results_frame(_frame(), COMPLETIONS, Spelled(), "echo")
    stem = "v1.5" if name == "v1.5" else "out"
    paths = write_frame(results, tmp_path / name)
    assert [path.name for path in paths] == [f"{stem}.pkl", f"{stem}.parquet"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in paths)
    pickled, parquet = map(read_frame, paths)
    assert pickled["ground_truth"].tolist() == ["A", 3, 3]
    assert parquet["ground_truth"].tolist() == ["A", "3", "3"]
    for frame in (pickled, parquet):
        assert [list(ids) for ids in frame["tok_model_output"]] == [[], [8], [5, 6, 7]]
        assert frame["model_output"].tolist() == ["", "8", "5 6 7"]


def test_what_parquet_cannot_hold_is_text_there(tmp_path):
    values = [["a", 1], [10**30, 1], ["\ud800", None], [{"a": 1}, "b"]]
    for first, second in values:
        frame = pd.DataFrame({"a": pd.Series([first, second], dtype=object), 5: [1, 2]})
        pickled, parquet = map(read_frame, write_frame(frame, tmp_path / "out"))
        assert pickled["a"].tolist() == [first, second]
        assert parquet["a"].tolist()[0] == str(first).replace("\ud800", "?")


def test_a_failed_write_leaves_the_old_file_whole(tmp_path, monkeypatch):
    write_frame(_frame(), tmp_path / "out")
    old = (tmp_path / "out.pkl").read_bytes()

    def half(frame, path):
        path.write_bytes(old[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("data.pickles.dump", half)
    with pytest.raises(OutputError, match="No space left"):
        write_frame(_frame(), tmp_path / "out")
    assert (tmp_path / "out.pkl").read_bytes() == old
    assert len(list(tmp_path.iterdir())) == 2


def test_check_writable(tmp_path):
    check_writable(tmp_path / "new" / "folder")
    assert (tmp_path / "new" / "folder").is_dir()
    check_writable(tmp_path / "other" / "out.pkl")
    assert list((tmp_path / "other").iterdir()) == []
    (tmp_path / "file").write_text("")
    (tmp_path / "taken.pkl").mkdir()
    for path in ("file", "file/below", "file/out.pkl", "taken.pkl"):
        with pytest.raises(OutputError):
            check_writable(tmp_path / path)
    with pytest.raises(OutputError):
        check_writable("/proc/none")
