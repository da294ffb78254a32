"""Reading frames: every kind of file, every way it can be wrong, and no code from a pickle."""

import contextlib
import io
import json
import os
import pickle

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.samples import Sample, read_frame, samples
from data.tasks import TASKS
from ref_dsinfer.errors import ColumnsError, EmptyDataError, InputFileError, UserError


def _frame():
    return pd.DataFrame(
        {
            "dataset": ["gpqa", "math500"],
            "question": ["q", "r"],
            "text_input": ["What?", "Über 中文"],
            "ground_truth": ["042", 7],
            "tok_input": [[1, 2], [3]],
            "tok_input_len": [2, 1],
            "score": [0.5, None],
        },
        index=[5, 9],
    )


def _write(frame, path):
    if path.suffix == ".parquet":
        frame.assign(ground_truth=frame["ground_truth"].map(str)).to_parquet(path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n\n" for row in frame.to_dict("records")))
    else:
        frame.to_pickle(path)
    return path


@pytest.mark.parametrize("suffix", [".pkl", ".pickle", ".parquet", ".jsonl"])
def test_every_kind_gives_the_same_samples(tmp_path, suffix):
    frame = read_frame(_write(_frame(), tmp_path / f"a{suffix}"))
    number = "7" if suffix == ".parquet" else 7
    assert samples(frame) == [
        Sample(0, "gpqa", "q", "What?", "042"),
        Sample(1, "math500", "r", "Über 中文", number),
    ]
    assert [list(ids) for ids in frame["tok_input"]] == [[1, 2], [3]]


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("strings", [object, "string", "str"])
def test_pickles_of_older_makes_are_read(tmp_path, protocol, strings):
    path = tmp_path / "a.pkl"
    frame = _frame().astype({"dataset": strings, "question": strings, "text_input": strings})
    frame["arrays"] = [np.array([1, 2]), np.array([3])]
    frame["scalars"] = pd.Series([np.int64(1), np.float32(2)], frame.index, dtype=object)
    with path.open("wb") as file:
        pickle.dump(frame[frame["tok_input_len"] > 0], file, protocol=protocol)
    assert len(samples(read_frame(path))) == 2


def test_numpy_1_names_are_understood(tmp_path):
    data = pickle.dumps(_frame().astype({"dataset": object}), protocol=3)
    old = data.replace(b"numpy._core.", b"numpy.core.")
    assert old != data
    (tmp_path / "a.pkl").write_bytes(old)
    assert len(read_frame(tmp_path / "a.pkl")) == 2


class Attack:
    def __init__(self, call, *arguments):
        self.reduced = call, arguments

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize(
    "attack",
    [
        Attack(os.system, "touch attacked"),
        Attack(eval, "open('attacked', 'w')"),
        Attack(getattr, pd.DataFrame, "eval"),
        Attack(pd.read_pickle, "other.pkl"),
        Attack(np.load, "other.npy", None, True),
        pd.eval,
    ],
    ids=range(6),
)
def test_a_pickle_cannot_call_anything(tmp_path, monkeypatch, attack):
    monkeypatch.chdir(tmp_path)
    for value in (attack, pd.DataFrame({"a": [attack]})):
        (tmp_path / "a.pkl").write_bytes(pickle.dumps(value))
        with pytest.raises(InputFileError, match="which no frame needs"):
            read_frame(tmp_path / "a.pkl")
    assert not (tmp_path / "attacked").exists()


@pytest.mark.parametrize(
    "named", [b"cpandas\nDataFrame\n", b"cpandas._libs.internals\n_unpickle_block\n"]
)
@pytest.mark.parametrize(
    "state", [b"}X\x04\x00\x00\x00meanK\x01s", b"N}X\x04\x00\x00\x00meanK\x01s\x86"]
)
def test_a_pickle_cannot_change_what_it_names(tmp_path, named, state):
    before = vars(pd.DataFrame).get("mean")
    (tmp_path / "a.pkl").write_bytes(b"\x80\x04" + named + state + b"b.")
    with pytest.raises(InputFileError, match="it changes what it names"):
        read_frame(tmp_path / "a.pkl")
    assert vars(pd.DataFrame).get("mean") is before


def test_a_dotted_name_is_not_resolved(tmp_path):
    (tmp_path / "a.pkl").write_bytes(b"\x80\x04\x8c\x06pandas\x8c\x0eDataFrame.eval\x93.")
    with pytest.raises(InputFileError, match=r"DataFrame\.eval"):
        read_frame(tmp_path / "a.pkl")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.pkl", None, "none.pkl"),
        ("a.csv", b"a,b", r"expected a \.pkl"),
        ("a", b"", r"expected a \.pkl"),
        ("a.pkl", b"", "not a .pkl data frame"),
        ("a.pkl", pickle.dumps(["a"]), "holds a list"),
        ("a.pkl", pickle.dumps({"a": 1}), "holds a dict"),
        ("a.pkl", b"\x80\x05no", "not a .pkl data frame"),
        ("a.parquet", b"no", "not a .parquet data frame"),
        ("a.jsonl", b"{", "not a .jsonl data frame"),
        ("a.jsonl", b"[1]\n", "line 1 is not an object"),
        ("a.jsonl", b"\xff", "not a .jsonl data frame"),
        ("a.jsonl", b"[" * 200_000, "not a .jsonl data frame"),
    ],
)
def test_what_is_no_frame_is_named(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputFileError, match=message):
        read_frame(tmp_path / name)


def test_a_folder_is_no_file(tmp_path):
    (tmp_path / "a.pkl").mkdir()
    with pytest.raises(InputFileError, match="directory"):
        read_frame(tmp_path / "a.pkl")


@pytest.mark.parametrize("suffix", [".pkl", ".parquet", ".jsonl"])
def test_no_rows(tmp_path, suffix):
    with pytest.raises(EmptyDataError, match="no rows"):
        read_frame(_write(_frame().iloc[:0], tmp_path / f"a{suffix}"))


def test_missing_columns_are_named_with_those_there():
    with pytest.raises(
        ColumnsError, match=r"missing columns: question, text_input \(present: data"
    ):
        samples(_frame().drop(columns=["question", "text_input"]))


@pytest.mark.parametrize("value", [None, 3, float("nan"), ["a"]])
def test_a_prompt_must_be_text(value):
    frame = _frame().astype({"text_input": object})
    frame["text_input"] = pd.Series(["fine", value], frame.index, dtype=object)
    with pytest.raises(ColumnsError, match="row 1: text_input is"):
        samples(frame)


@pytest.mark.parametrize("value", ["imagenet", None, float("nan"), 3])
def test_an_unknown_data_set_is_named_with_its_row(value):
    frame = _frame()
    frame["dataset"] = pd.Series(["gpqa", value], frame.index, dtype=object)
    with pytest.raises(ColumnsError, match=r"row 1: unknown data set .*known tasks: gpqa"):
        samples(frame)


def _pickled():
    buffer = io.BytesIO()
    _frame().to_pickle(buffer)
    return buffer.getvalue()


PICKLED = _pickled()


@given(data=st.data(), suffix=st.sampled_from([".pkl", ".jsonl", ".parquet"]))
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_damaged_files_end_in_a_named_error(tmp_path, data, suffix):
    """A damaged pickle is cut short or has bytes put over its beginning; others are wild bytes."""
    path = tmp_path / f"wild{suffix}"
    if suffix == ".pkl":
        cut = data.draw(st.integers(0, len(PICKLED)))
        at = data.draw(st.integers(0, 200))
        content = PICKLED[:at] + data.draw(st.binary(max_size=3)) + PICKLED[at:cut]
    else:
        content = data.draw(st.binary(max_size=60))
    path.write_bytes(content)
    with contextlib.suppress(UserError):
        read_frame(path)


@given(st.text(st.characters(exclude_categories=())))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_wild_names_are_known_or_a_columns_error(name):
    frame = _frame().assign(dataset=pd.Series([name] * 2, [5, 9], dtype=object))
    with contextlib.suppress(ColumnsError):
        assert samples(frame)[0].task in TASKS
