"""Reading frames: every kind of file, every fault in one, and no code executed from a pickle."""

import contextlib
import datetime
import gzip
import io
import json
import os
import pathlib
import pickle
from array import array
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data import tables
from data.results import write_frame
from data.samples import TASKS, Sample, is_missing, read_frame, samples
from errors import ColumnsError, EmptyDataError, InputFileError, UserError
from tests.apart import apart
from tests.effort import cases


def _frame() -> pd.DataFrame:
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


def _write(frame: pd.DataFrame, path: Path) -> Path:
    if path.suffix == ".parquet":
        frame.assign(ground_truth=frame["ground_truth"].map(str)).to_parquet(path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n\n" for row in frame.to_dict("records")))
    else:
        frame.to_pickle(path)
    return path


@pytest.mark.parametrize("suffix", [".pkl", ".pickle", ".parquet", ".jsonl"])
def test_every_kind_gives_the_same_samples(tmp_path: Path, suffix: str) -> None:
    frame = read_frame(_write(_frame(), tmp_path / f"a{suffix}"))
    number = "7" if suffix == ".parquet" else 7
    assert samples(frame) == [
        Sample(0, "gpqa", "What?", "042"),
        Sample(1, "math500", "Über 中文", number),
    ]
    assert [list(ids) for ids in frame["tok_input"]] == [[1, 2], [3]]


@pytest.mark.parametrize("suffix", [".pkl", ".parquet", ".jsonl"])
def test_only_the_columns_that_are_wanted(tmp_path: Path, suffix: str) -> None:
    path = _write(_frame(), tmp_path / f"a{suffix}")
    wanted = read_frame(path, {"score", "dataset", "ground_truth", "grading_rule"})
    pd.testing.assert_frame_equal(wanted, read_frame(path)[["dataset", "ground_truth", "score"]])


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("strings", [object, "string", "str"])
def test_pickles_of_older_makes_are_read(
    tmp_path: Path, protocol: int, strings: type | str
) -> None:
    path = tmp_path / "a.pkl"
    frame = _frame().astype({"dataset": strings, "question": strings, "text_input": strings})
    frame["arrays"] = pd.Series([np.array([1, 2]), np.array([3])], frame.index, dtype=object)
    frame["scalars"] = pd.Series([np.int64(1), np.float32(2)], frame.index, dtype=object)
    with path.open("wb") as file:
        pickle.dump(frame[frame["tok_input_len"] > 0], file, protocol=protocol)
    assert len(samples(read_frame(path))) == 2


def test_numpy_1_names_are_understood(tmp_path: Path) -> None:
    data = pickle.dumps(_frame().astype({"dataset": object}), protocol=3)
    old = data.replace(b"numpy._core.", b"numpy.core.")
    assert old != data
    (tmp_path / "a.pkl").write_bytes(old)
    assert len(read_frame(tmp_path / "a.pkl")) == 2


class Attack:
    def __init__(self, call: Callable[..., object], *arguments: object) -> None:
        self.reduced = call, arguments

    def __reduce__(self) -> tuple[object, ...]:
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
def test_a_pickle_cannot_call_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attack: object
) -> None:
    monkeypatch.chdir(tmp_path)
    for value in (attack, pd.DataFrame({"a": [attack]})):
        (tmp_path / "a.pkl").write_bytes(pickle.dumps(value))
        with pytest.raises(InputFileError, match="which no data frame needs"):
            read_frame(tmp_path / "a.pkl")
    assert not (tmp_path / "attacked").exists()


@pytest.mark.parametrize(
    "named", [b"cpandas\nDataFrame\n", b"cpandas._libs.internals\n_unpickle_block\n"]
)
@pytest.mark.parametrize(
    "state", [b"}X\x04\x00\x00\x00meanK\x01s", b"N}X\x04\x00\x00\x00meanK\x01s\x86"]
)
def test_a_pickle_cannot_change_what_it_names(tmp_path: Path, named: bytes, state: bytes) -> None:
    before = vars(pd.DataFrame).get("mean")
    (tmp_path / "a.pkl").write_bytes(b"\x80\x04" + named + state + b"b.")
    with pytest.raises(InputFileError, match="it changes a function or class"):
        read_frame(tmp_path / "a.pkl")
    assert vars(pd.DataFrame).get("mean") is before


def test_a_dotted_name_is_not_resolved(tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(b"\x80\x04\x8c\x06pandas\x8c\x0eDataFrame.eval\x93.")
    with pytest.raises(InputFileError, match=r"DataFrame\.eval"):
        read_frame(tmp_path / "a.pkl")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.pkl", None, "none.pkl"),
        ("a.csv", b"a,b", r"expected a \.pkl"),
        ("a", b"", r"expected a \.pkl"),
        ("a.pkl", b"", "not a .pkl data frame: it is empty"),
        ("a.pkl", pickle.dumps(["a"]), "holds a list"),
        ("a.pkl", pickle.dumps({"a": 1}), "holds a dict"),
        ("a.pkl", b"\x80\x05no", "not a .pkl data frame"),
        ("a.parquet", b"no", "not a .parquet data frame"),
        ("a.jsonl", b"{", "not a .jsonl data frame"),
        ("a.jsonl", b"[1]\n", "line 1 is not an object"),
        ("a.jsonl", b"\xff", "not a .jsonl data frame"),
        ("a.jsonl", b"[" * 200_000, "not a .jsonl data frame"),
        ("a.jsonl", rb'{"\ud83d": 1}', "not a .jsonl data frame: 'utf-8' codec can't encode"),
    ],
)
def test_what_is_no_frame_is_named(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputFileError, match=message):
        read_frame(tmp_path / name)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "a.pkl").mkdir()
    with pytest.raises(InputFileError, match="directory"):
        read_frame(tmp_path / "a.pkl")


@pytest.mark.parametrize("suffix", [".pkl", ".parquet", ".jsonl"])
def test_no_rows(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(EmptyDataError, match="no rows"):
        read_frame(_write(_frame().iloc[:0], tmp_path / f"a{suffix}"))


def test_missing_columns_are_named_with_those_there() -> None:
    with pytest.raises(
        ColumnsError,
        match=r"missing columns: question, text_input or tok_input or input_tokens \(present: data",
    ):
        samples(_frame().drop(columns=["question", "text_input", "tok_input"]))


@pytest.mark.parametrize("value", [None, 3, float("nan"), ["a"]])
def test_a_prompt_must_be_text(value: object) -> None:
    frame = _frame().astype({"text_input": object})
    frame["text_input"] = pd.Series(["fine", value], frame.index, dtype=object)
    with pytest.raises(ColumnsError, match="row 1: text_input is"):
        samples(frame)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("imagenet", r"row 1: unknown data set 'imagenet' \(known tasks: gpqa"),
        ("\x1b[2J\ud83d", r"row 1: unknown data set '\\x1b\[2J\\ud83d'"),
        ("x" * 1000, r"row 1: unknown data set 'x{40,}\.\.\.x{40,}' \(known"),
        (None, "row 1: dataset is missing, not text"),
        (float("nan"), "row 1: dataset is missing, not text"),
        (3, "row 1: dataset is int, not text"),
        ([[]], "row 1: dataset is list, not text"),
    ],
)
def test_an_unknown_data_set_is_named_with_its_row(value: object, message: str) -> None:
    frame = _frame()
    frame["dataset"] = pd.Series(["gpqa", value], frame.index, dtype=object)
    with pytest.raises(ColumnsError, match=message):
        samples(frame)


NUMBERS = st.integers(0, 129_000) | st.integers(-(2**70), 2**70)
LONG_LISTS = st.builds(
    lambda first, count, more, comma: f"[{comma.join(map(str, [first] * count + more))}]",
    st.integers(-9, 129_000),
    st.integers(60, 70),
    st.lists(NUMBERS, max_size=3),
    st.sampled_from([", ", ",", " ,"]),
)
CELLS = LONG_LISTS | st.sampled_from(
    ['"x"', "NaN", "-0", "1e5", "[1.5]", r'"\ud83d"', '{"a": null}']
)


@given(st.lists(st.tuples(st.sampled_from("aab"), CELLS), max_size=3), st.data())
@settings(max_examples=cases(200, 20_000))
def test_token_ids_in_json_are_what_the_library_reads(
    cells: list[tuple[str, str]], data: st.DataObject
) -> None:
    line = "{" + ", ".join(f'"{name}": {cell}' for name, cell in cells) + "}"
    at = data.draw(st.integers(0, 2 * len(line)))  # beyond the end: nothing is changed
    damaged = line[:at] + data.draw(st.sampled_from("-,[]0x. ")) + line[at + 1 :]
    for content in (line, damaged):
        with pytest.MonkeyPatch.context() as patch:
            quick = _values_or_error(content)
            patch.setattr(tables, "_quick_row", lambda line, raw_values: None)
            assert quick == _values_or_error(content)


def _values_or_error(line: str) -> str:
    try:
        frame = tables.json_lines(io.BytesIO(line.encode()))
    except ValueError as error:
        return str(error)
    return repr([(type(cell), getattr(cell, "dtype", None), list(cell) if hasattr(cell, "dtype")
                  else cell) for column in frame for cell in frame[column]])  # fmt: skip


@pytest.mark.parametrize("column", ["question", "text_input"])
@pytest.mark.parametrize("suffix", [".pkl", ".jsonl"])
def test_half_a_surrogate_is_no_text(tmp_path: Path, column: str, suffix: str) -> None:
    frame = _frame()
    frame[column] = pd.Series(["fine", "half \ud83d"], frame.index, dtype=object)
    message = rf"row 1: {column} is not valid Unicode: lone surrogate U\+D83D at character 5"
    with pytest.raises(ColumnsError, match=message):
        samples(read_frame(_write(frame, tmp_path / f"a{suffix}")))


@pytest.mark.parametrize("value", [["A"], {"a": 1}, b"A", np.array([1])])
def test_a_truth_is_text_or_a_number(value: object) -> None:
    frame = _frame()
    frame["ground_truth"] = pd.Series(["A", value], frame.index, dtype=object)
    with pytest.raises(ColumnsError, match=r"row 1: ground_truth is .*, neither text nor number"):
        samples(frame)


def test_a_column_that_is_there_twice_is_named(tmp_path: Path) -> None:
    frame = _frame()
    twice = pd.concat([frame, frame[["question"]]], axis=1)
    twice.to_pickle(tmp_path / "a.pkl")
    pa_table = pa.Table.from_pandas(frame.astype({"ground_truth": str}))
    pq.write_table(pa_table.append_column("question", pa_table["question"]), tmp_path / "a.parquet")
    for name in ("a.pkl", "a.parquet"):
        with pytest.raises(ColumnsError, match=rf"{name}: two columns are named 'question'"):
            read_frame(tmp_path / name)
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n{"a": 1, "b": 2, "a": 3}\n')
    with pytest.raises(InputFileError, match="line 2: the key 'a' occurs twice"):
        read_frame(tmp_path / "a.jsonl")


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"a": "\xc3\xbc"}\n')
    assert read_frame(tmp_path / "a.jsonl")["a"].tolist() == ["ü"]


def test_a_bad_line_is_numbered_in_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n\n{"a": 2}\n{"a": }\n')
    with pytest.raises(InputFileError, match="line 4, column 7: Expecting value"):
        read_frame(tmp_path / "a.jsonl")


RICH = {
    "category": lambda frame: frame.astype({"dataset": "category"}),
    "date": lambda frame: frame.assign(made=[datetime.date(2025, 1, 2)] * 2),
    "time": lambda frame: frame.assign(made=pd.Timestamp("2025-01-02 03:04:05")),
    "zone": lambda frame: frame.assign(made=pd.Timestamp("2025-01-02 03:04:05", tz="UTC")),
    "decimal": lambda frame: frame.assign(made=[Decimal("1.50"), None]),
    "nullable": lambda frame: frame.astype({"tok_input_len": "Int64"}),
    "holes": lambda frame: frame.assign(made=pd.array([1, None], "Int64")),
    "dictionary": lambda frame: frame.assign(made=pd.Categorical([7, 8])),
    "struct": lambda frame: frame.assign(made=[{"a": 1, "b": [1.5]}, {"a": 2, "b": []}]),
    "arrow": lambda frame: frame.convert_dtypes(dtype_backend="pyarrow"),
    "boolean": lambda frame: frame.assign(made=pd.array([True, None], "boolean")),
}
PLAIN = {
    "date": ["2025-01-02"] * 2,
    "time": [pd.Timestamp("2025-01-02 03:04:05")] * 2,
    "zone": ["2025-01-02T03:04:05+00:00"] * 2,
    "decimal": ["1.50", None],
    "holes": [1, None],
    "dictionary": [7, 8],
    "boolean": [True, None],
}


@pytest.mark.parametrize("kind", RICH)
def test_columns_of_every_type_become_plain_ones(tmp_path: Path, kind: str) -> None:
    """What is read from parquet, and written as results, is read from either of the two files."""
    frame = _frame().astype({"ground_truth": str})
    frame["tok_input"] = [[1, 2], [3]]
    RICH[kind](frame).to_parquet(tmp_path / "a.parquet")
    read = read_frame(tmp_path / "a.parquet")
    assert read["tok_input_len"].tolist() == [2, 1]
    assert len(samples(read)) == 2
    if kind in PLAIN:
        assert read["made"].tolist() == PLAIN[kind]
    for path in write_frame(read, tmp_path / "results"):
        again = read_frame(path)
        assert samples(again) == samples(read)
        if kind in PLAIN:
            made = [None if is_missing(value) else value for value in again["made"]]
            assert made == PLAIN[kind]


def test_a_column_that_cannot_be_read_is_named_with_the_twin_file(tmp_path: Path) -> None:
    frame = _frame().assign(made=pd.Series([1j, 2j]).to_numpy())
    frame.to_pickle(tmp_path / "a.pkl")
    with pytest.raises(
        ColumnsError, match=r"a\.pkl: column made: .*'c16': convert it to text"
    ) as raised:
        read_frame(tmp_path / "a.pkl")
    assert "parquet" not in str(raised.value)
    _write(_frame(), tmp_path / "a.parquet")
    with pytest.raises(ColumnsError, match=r"or use .*a\.parquet"):
        read_frame(tmp_path / "a.pkl")
    frame = _frame().assign(made=pd.Series([1, pathlib.Path("x")], dtype=object).to_numpy())
    frame.to_pickle(tmp_path / "b.pkl")
    with pytest.raises(
        InputFileError, match=r"it refers to pathlib\.\w+, which no data frame needs"
    ):
        read_frame(tmp_path / "b.pkl")


WRONG = {
    "a git-lfs pointer.*git lfs pull": b"version https://git-lfs.github.com/spec/v1\nsize 9\n",
    "an HTML page": b"<!DOCTYPE html><title>Sign in</title>",
    "compressed by gzip": gzip.compress(b"anything", mtime=0),
    "empty: download it again": b"",
    "a server's error message": b'{"error": "Entry not found"}',
}


@pytest.mark.parametrize("suffix", [".pkl", ".parquet", ".jsonl"])
@pytest.mark.parametrize("message", WRONG)
def test_files_of_another_kind_are_recognised(tmp_path: Path, message: str, suffix: str) -> None:
    if suffix == ".jsonl" and message in ("a server's error message", "empty: download it again"):
        return  # a row of one column is no error; nothing at all has no rows
    (tmp_path / f"a{suffix}").write_bytes(WRONG[message])
    with pytest.raises(
        InputFileError, match=rf"a\{suffix}: not a \{suffix} data frame: it is {message}"
    ):
        read_frame(tmp_path / f"a{suffix}")


def test_frames_with_another_suffix_are_recognised(tmp_path: Path) -> None:
    _frame().to_pickle(tmp_path / "a.parquet")
    _write(_frame(), tmp_path / "b.parquet").rename(tmp_path / "b.pkl")
    with pytest.raises(InputFileError, match="it is a pickle"):
        read_frame(tmp_path / "a.parquet")
    with pytest.raises(InputFileError, match="it is a Parquet file"):
        read_frame(tmp_path / "b.pkl")


def _parquet_of(table: pa.Table, tmp_path: Path, **options: bool) -> Path:
    pq.write_table(table, tmp_path / "a.parquet", **options)
    return tmp_path / "a.parquet"


def test_a_few_bytes_of_parquet_do_not_fill_memory(tmp_path: Path) -> None:
    many = pa.table({"a": pa.array(np.zeros(1_000_001, np.int8))})
    with pytest.raises(InputFileError, match="1000001 rows, more than 1000000"):
        read_frame(_parquet_of(many, tmp_path))
    rows = pa.DictionaryArray.from_arrays(np.zeros(90_000, np.int32), ["x" * 10_000])
    long = _parquet_of(pa.table({"a": rows}), tmp_path, store_schema=False)
    assert long.stat().st_size < 100_000
    with pytest.raises(InputFileError, match="far more than the file's size"):
        read_frame(long)


def _pickled() -> bytes:
    buffer = io.BytesIO()
    _frame().to_pickle(buffer)
    return buffer.getvalue()


PICKLED = _pickled()


@given(data=st.data(), suffix=st.sampled_from([".pkl", ".jsonl", ".parquet"]))
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_damaged_files_end_in_a_named_error(
    tmp_path: Path, data: st.DataObject, suffix: str
) -> None:
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
def test_wild_names_are_known_or_a_columns_error(name: str) -> None:
    frame = _frame().assign(dataset=pd.Series([name] * 2, [5, 9], dtype=object))
    with contextlib.suppress(ColumnsError):
        assert samples(frame)[0].task in TASKS


def test_a_parquet_footer_that_contradicts_itself_is_refused() -> None:
    """One byte is changed, and pyarrow's access to a column's metadata ends the process."""
    path = Path(__file__).parent / "damaged" / "levels.parquet"
    message, code, _ = apart(lambda: f"{len(read_frame(path))} rows")
    assert code == InputFileError.exit_code, message
    assert message.startswith(f"{path}: not a .parquet data frame: ")


def test_texts_of_parquet_that_are_not_utf_8_are_refused(tmp_path: Path) -> None:
    buffers = [None, pa.py_buffer(array("i", [0, 2])), pa.py_buffer(b"\xff\xfe")]
    texts = pa.Array.from_buffers(pa.string(), 1, buffers)
    pq.write_table(pa.table({"question": texts}), tmp_path / "a.parquet")
    with pytest.raises(InputFileError, match=r"not a \.parquet data frame: Invalid UTF8"):
        read_frame(tmp_path / "a.parquet")
