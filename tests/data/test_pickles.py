"""Pickled frames: the same values as the standard library gives, in a fraction of the memory."""

import io
import pickle
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data import pickles
from data.pickles.arrow import NUMBERS
from data.samples import read_frame
from errors import UserError

LENGTHS = (0, 1, 2, 63, 64, 65, 999, 1000, 1001, 2000, 2001, 2064, 20_000)


def _load(data: bytes, tmp_path: Path) -> pd.DataFrame:
    (tmp_path / "a.pkl").write_bytes(data)
    with (tmp_path / "a.pkl").open("rb") as file:
        return pickles.load(file)


def _cell(value: object, protocol: int, tmp_path: Path) -> Any:
    """A value as the cell of a frame, through a pickle of that protocol."""
    frame = pd.DataFrame({"v": pd.Series([value, None], dtype=object)})
    return _load(pickle.dumps(frame, protocol), tmp_path)["v"][0]


def _plain(value: object) -> Any:
    """Arrays of one dimension as lists, however deep."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, list | tuple):
        return type(value)(map(_plain, value))
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("largest", [255, 65_535, 129_000, 2**31 - 1])
def test_lists_of_every_length_are_what_they_were(
    tmp_path: Path, protocol: int, largest: int
) -> None:
    rng = random.Random(largest)
    lists = [[rng.randint(-largest if largest > 2**20 else 0, largest) for _ in range(n)]
             for n in LENGTHS]  # fmt: skip
    frame = pd.DataFrame({"ids": pd.Series(lists, dtype=object), "n": LENGTHS})
    read = _load(pickle.dumps(frame, protocol), tmp_path)
    assert [_plain(ids) for ids in read["ids"]] == lists
    assert read["n"].tolist() == list(LENGTHS)
    kinds = [type(ids) is np.ndarray and ids.dtype == np.int32 for ids in read["ids"]]
    assert kinds == [n >= pickles.MANY for n in LENGTHS]


MIXED = [1] * 1000
ODD = [
    [*MIXED, "a"],
    ["a", *MIXED],
    [*MIXED, 1.5],
    [*MIXED, [1, 2], (3, 4)],
    [*MIXED, 2**40],
    [True] * 100,
    [None, *MIXED],
    [MIXED, MIXED],
    (MIXED, [2] * 64, MIXED),
    {"a": [3] * 1000, "b": ([4] * 70, 5, [6])},
    [[[7] * 64] * 3],
    [{}, [8] * 2000, {"x": [9] * 64}],
    [2**31] * 100,
    ["e(K\x01e" * 30, [75] * 100],
]


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize("value", ODD, ids=range(len(ODD)))
def test_other_lists_are_left_alone(tmp_path: Path, protocol: int, value: object) -> None:
    assert _plain(_cell(value, protocol, tmp_path)) == value


def test_a_list_that_occurs_twice_is_one_object(tmp_path: Path) -> None:
    first, (again,) = _cell([MIXED, [MIXED]], 5, tmp_path)
    assert first is again


@pytest.mark.parametrize("rows", [1, 3, 64, 1000, 1500])
def test_columns_of_objects_stay_columns(tmp_path: Path, rows: int) -> None:
    # the cells of such columns are one list in the pickle
    frame = pd.DataFrame(
        {"a": pd.Series(range(rows), dtype=object), "b": pd.Series(["x"] * rows, dtype=object)}
    )
    for part in (frame, frame[["a"]], frame[["b", "a"]]):
        pd.testing.assert_frame_equal(_load(pickle.dumps(part), tmp_path), part)


VALUES = st.recursive(
    st.integers() | st.integers(0, 200_000) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=5) | st.tuples(inner, inner),
    max_leaves=12,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 2**17), max_size=3000) | VALUES, st.integers(2, 5))
def test_any_value_is_read_as_the_library_reads_it(
    tmp_path: Path, value: object, protocol: int
) -> None:
    assert _plain(_cell(value, protocol, tmp_path)) == value


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200))
def test_wild_bytes_are_read_or_refused(tmp_path: Path, data: bytes) -> None:
    admitted = pickle.dumps(pd.DataFrame({"a": [[1] * 70]}), 4)
    cut = len(data) % len(admitted)
    path = tmp_path / "a.pkl"
    for content in (data or b"x", admitted[:cut] + data + admitted[cut:]):
        path.write_bytes(content)
        try:
            frame = read_frame(path)
        except UserError:
            continue
        assert len(frame) == 1


@pytest.mark.slow
def test_reading_takes_a_fraction_of_the_memory(tmp_path: Path) -> None:
    rows, length = 300, 4000
    rng = random.Random(1)
    ids = [[rng.randrange(300, 129_000) for _ in range(length)] for _ in range(rows)]
    data = pickle.dumps(pd.DataFrame({"ids": pd.Series(ids, dtype=object)}))
    del ids
    tracemalloc.start()
    try:
        _load(data, tmp_path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 * 4 * rows * length  # lists take ten times four bytes an id


@pytest.mark.parametrize("kind", [list, np.array])
def test_arrays_and_lists_are_written_as_lists(tmp_path: Path, kind: Callable) -> None:
    lists = [list(range(n, n + n)) for n in (1, 2, 64, 1000, 1001)]
    cells = [np.array(ids, np.int32) if kind is np.array else ids for ids in lists]
    frame = pd.DataFrame({"ids": pd.Series(cells, dtype=object), "again": [cells[2]] * 5})
    frame["n"] = frame["score"] = 1.5
    pickles.dump(frame, tmp_path / "out.pkl")
    read = pd.read_pickle(tmp_path / "out.pkl")
    assert read["ids"].tolist() == lists
    assert read["again"].tolist() == [lists[2]] * 5
    assert read["again"][0] is read["ids"][2]
    assert read["n"].tolist() == [1.5] * 5
    again = _load((tmp_path / "out.pkl").read_bytes(), tmp_path)
    assert [list(ids) for ids in again["ids"]] == lists


def test_what_is_written_is_what_the_library_writes(tmp_path: Path) -> None:
    frame = pd.DataFrame({"ids": [[1, 2], list(range(3000))], "t": ["a", "ü"]}, index=[4, 2])
    pickles.dump(frame, tmp_path / "out.pkl")
    whole = io.BytesIO((tmp_path / "out.pkl").read_bytes())
    pd.testing.assert_frame_equal(pickle.load(whole), frame)


@settings(max_examples=60, deadline=None)
@given(kinds=st.text("ifo", min_size=1, max_size=9), backwards=st.booleans())
def test_columns_of_every_order_are_where_they_were(
    tmp_path_factory: pytest.TempPathFactory, kinds: str, backwards: bool
) -> None:
    """Two number columns at 6 and 9 are a block 6:12:3, whose end is beyond the last column."""
    values = {"i": 1, "f": 0.5, "o": "a"}
    frame = pd.DataFrame(
        {f"{kind}{number}": [values[kind]] for number, kind in enumerate(kinds)}
    ).iloc[:, :: -1 if backwards else 1]
    read = _load(pickle.dumps(frame), tmp_path_factory.mktemp("a"))
    assert read.to_dict("list") == frame.to_dict("list")


ARROW_VALUES = {
    pa.string(): st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    pa.large_string(): st.text("aé", max_size=5),
    pa.bool_(): st.booleans(),
    **{pa.type_for_alias(name): st.integers(0, 100) for name in NUMBERS if "int" in name},
    **{pa.type_for_alias(name): st.floats(width=16) for name in NUMBERS if "int" not in name},
}
ARROW_VALUES |= {
    pa.list_(pa.int64()): st.lists(st.integers(0, 10**12), max_size=70),
    pa.large_list(pa.int32()): st.lists(st.integers(0, 129_000), max_size=70),
    pa.list_(pa.string()): st.lists(st.none() | st.text("ab"), max_size=3),
    pa.list_(pa.float64()): st.lists(st.floats(allow_nan=False), max_size=3),
}


@settings(max_examples=100, deadline=None)
@given(data=st.data(), kind=st.sampled_from(list(ARROW_VALUES)), cut=st.integers(0, 2))
def test_arrow_backed_columns_are_what_they_were(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, kind: pa.DataType, cut: int
) -> None:
    """Also as parquet; `cut` makes an array that starts inside its buffers."""
    values = data.draw(st.lists(st.none() | ARROW_VALUES[kind], min_size=3, max_size=12))
    array = pd.arrays.ArrowExtensionArray(pa.array(values, kind))
    frame = pd.DataFrame({"v": pd.Series(array), "n": range(len(values))}).iloc[cut:]
    folder = tmp_path_factory.mktemp("a")
    frame.to_pickle(folder / "a.pkl")
    if pa.float16() != kind:  # which pandas can't write
        frame.to_parquet(folder / "a.parquet")
    for path in folder.iterdir():
        column = read_frame(path)["v"]
        assert [_known(cell) for cell in column] == [_known(cell) for cell in frame["v"]]


def _known(cell: Any) -> Any:
    """A cell, None if it is missing."""
    missing = cell is pd.NA or (isinstance(cell, float) and cell != cell)
    return None if missing else _plain(cell)
