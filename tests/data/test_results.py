"""The results frame and the files it is kept in."""

from array import array
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from backends.types import Completion
from data.frames import ROW_GROUP
from data.prompts import Prompts
from data.results import check_writable, results_frame, write_frame
from data.samples import read_frame
from errors import OutputError

COMPLETIONS = [
    (1, Completion(12, array("i", [5, 6, 7]), "stop", 100, 200)),
    (0, Completion(30, array("i"), "stop", 150, 150)),
    (1, Completion(3, array("i", [8]), "length", 1, 2)),
]


def _frame() -> pd.DataFrame:
    return pd.DataFrame(
        {"dataset": ["gpqa", "aime"], "ground_truth": ["A", 3], "tok_input": [[1], [2, 3]]}
    )


@pytest.fixture(scope="module")
def prompts(echo_model: Path) -> Prompts:
    return Prompts(echo_model)


def test_a_results_frame_has_a_row_an_answer_in_order(prompts: Prompts) -> None:
    results = results_frame(_frame(), COMPLETIONS, prompts, "echo")
    assert results["sample_index"].tolist() == [0, 1, 1]
    assert results["query_id"].tolist() == [30, 3, 12]
    assert results["dataset"].tolist() == ["gpqa", "aime", "aime"]
    assert results["ground_truth"].tolist() == ["A", 3, 3]
    assert results["model_output"].tolist() == ["", "%", '"#$']
    assert [ids.tolist() for ids in results["tok_model_output"]] == [[], [8], [5, 6, 7]]
    assert results["tok_model_output_len"].tolist() == [0, 1, 3]
    assert results["finish"].tolist() == ["stop", "length", "stop"]
    assert results["model_backend"].tolist() == ["echo"] * 3
    again = results_frame(results, [(0, COMPLETIONS[0][1])], prompts, "other")
    assert again.columns.is_unique
    assert again["model_backend"].tolist() == ["other"]


@pytest.mark.parametrize("name", ["out", "out.pkl", "out.parquet", "out.pickle", "v1.5"])
def test_pickle_and_parquet_have_the_same_content(
    tmp_path: Path, name: str, prompts: Prompts
) -> None:
    results = results_frame(_frame(), COMPLETIONS, prompts, "echo")
    stem = "v1.5" if name == "v1.5" else "out"
    paths = write_frame(results, tmp_path / name)
    assert [path.name for path in paths] == [f"{stem}.pkl", f"{stem}.parquet"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in paths)
    pickled, parquet = map(read_frame, paths)
    assert pickled["ground_truth"].tolist() == ["A", 3, 3]
    assert parquet["ground_truth"].tolist() == ["A", 3, 3]
    plain = pd.read_parquet(paths[1])  # without our kinds: as text
    assert plain["ground_truth"].tolist() == ["A", "3", "3"]
    for frame in (pickled, parquet):
        assert [list(ids) for ids in frame["tok_model_output"]] == [[], [8], [5, 6, 7]]
        assert frame["model_output"].tolist() == ["", "%", '"#$']


def test_what_parquet_has_no_type_for_is_kept_too(tmp_path: Path) -> None:
    values: list[tuple[object, object]] = [
        ("a", 1),
        (10**30, 1),
        ("\ud800", None),
        ({"a": 1}, "b"),
    ]
    for first, second in values:
        frame = pd.DataFrame({"a": pd.Series([first, second], dtype=object), 5: [1, 2]})
        pickled, parquet = map(read_frame, write_frame(frame, tmp_path / "out"))
        assert pickled["a"].tolist() == [first, second]
        assert parquet["a"].tolist() == [first, second]


def test_writing_holds_no_second_copy_of_token_ids(tmp_path: Path) -> None:
    rows, tokens = 8 * ROW_GROUP, 500
    ids = [np.arange(tokens, dtype=np.int32) for _ in range(rows)]
    frame = pd.DataFrame({"ids": ids, "model_output": [f"{row}" for row in range(rows)]})
    pool, before = pa.proxy_memory_pool(pa.default_memory_pool()), pa.default_memory_pool()
    pa.set_memory_pool(pool)
    try:
        paths = write_frame(frame, tmp_path / "out")
    finally:
        pa.set_memory_pool(before)
    assert pool.max_memory() < 4 * rows * tokens / 2
    for read in map(read_frame, paths):
        assert len(read) == rows
        assert all(list(one) == list(ids[0]) for one in read["ids"])


def test_texts_of_many_answers_are_in_order(prompts: Prompts) -> None:
    count = 2 * ROW_GROUP + 1
    ids = [40 + row % 50 for row in range(count)]
    answers = [(row, Completion(row, array("i", [ids[row]]), "stop", 1, 2)) for row in range(count)]
    frame = pd.DataFrame({"dataset": ["gpqa"] * count})
    results = results_frame(frame, answers, prompts, "echo")
    assert results["model_output"].tolist() == [prompts.text([one]) for one in ids]
    assert results_frame(frame, [], prompts, "echo").empty


def test_a_failed_write_leaves_the_old_file_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_frame(_frame(), tmp_path / "out")
    old = (tmp_path / "out.pkl").read_bytes()

    def half(frame: pd.DataFrame, path: Path) -> None:
        path.write_bytes(old[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("data.pickles.dump", half)
    with pytest.raises(OutputError, match="No space left"):
        write_frame(_frame(), tmp_path / "out")
    assert (tmp_path / "out.pkl").read_bytes() == old
    assert len(list(tmp_path.iterdir())) == 2


def test_check_writable(tmp_path: Path) -> None:
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
