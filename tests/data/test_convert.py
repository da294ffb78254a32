"""Conversions between all kinds of files: the same values come back, and no file is lost."""

import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data import frames, kinds
from data.convert import convert
from data.samples import is_missing, read_frame, samples
from errors import ColumnsError, InputFileError, OutputError, UsageError
from tests.effort import cases, few_fast

ENDINGS = (".pkl", ".parquet", ".jsonl")
PAIRS = [(first, second) for first in ENDINGS for second in ENDINGS]
FRAMES = sorted((Path(__file__).parent / "frames").glob("*/*.pkl"))
TINY = Path(__file__).parents[2] / "data" / "tiny" / "final_output.pkl"

WHOLE = st.integers(-(2**63), 2**63 - 1)
TEXTS = st.text(max_size=9) | st.sampled_from(["042", "NaN", "null", "", "\ud83d", "1e5", "True"])
SCALARS = st.none() | TEXTS | st.booleans() | st.integers(-(2**80), 2**80) | st.floats()
VALUES = st.recursive(
    SCALARS | st.binary(max_size=4),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(max_size=3) | st.sampled_from(kinds.TAGS) | st.integers(0, 9), inner,
                      max_size=3),
    max_leaves=6,
)  # fmt: skip
IDS = st.lists(st.integers(0, 129_000), max_size=4) | st.integers(60, 70).map(lambda n: [n] * n)
TYPES = ("int8", "int32", "int64", "uint8", "uint64", "float16", "float32", "float64", "bool")
TIMES = tuple(f"datetime64[{unit}]" for unit in ("s", "ms", "us", "ns"))


def objects(values: list[object]) -> pd.Series:
    return pd.Series(kinds.objects(values), dtype=object)


@st.composite
def columns(draw: st.DrawFn, rows: int) -> pd.Series:
    kind = draw(st.sampled_from(("values", "scalars", "ids", "text", "times", *TYPES)))
    if kind in TYPES:
        numbers = st.integers(0, 100) | (st.floats(width=16) if "float" in kind else st.nothing())
        return pd.Series(np.array(draw(st.lists(numbers, min_size=rows, max_size=rows)), kind))
    if kind == "times":
        stamps = st.integers(0, 2_000_000_000) | st.none()
        cells = draw(st.lists(stamps, min_size=rows, max_size=rows))
        unit = draw(st.sampled_from(TIMES))
        seconds = np.array(["NaT" if one is None else one for one in cells], "datetime64[s]")
        return pd.Series(seconds.astype(unit))
    cell = {
        "values": VALUES,
        "scalars": draw(st.sampled_from((SCALARS, WHOLE, WHOLE | st.none(), st.floats(), TEXTS))),
        "ids": IDS | st.none() | IDS.map(lambda ids: np.array(ids, np.int32)),
        "text": TEXTS | st.none(),
    }[kind]
    return objects(draw(st.lists(cell, min_size=rows, max_size=rows)))


@st.composite
def some_frames(draw: st.DrawFn) -> pd.DataFrame:
    rows = draw(st.integers(1, 5))
    names = draw(
        st.lists(st.text("aé# ", min_size=1, max_size=3), min_size=1, max_size=4, unique=True)
    )
    return pd.DataFrame({name: draw(columns(rows)) for name in names})


def same_cell(new: object, old: object) -> bool:
    """Whether two cells hold the same: kinds of numbers matter, kinds of lists do not."""
    new, old = (
        cell.tolist() if isinstance(cell, np.ndarray | np.generic) else cell for cell in (new, old)
    )
    if is_missing(old) or is_missing(new):
        return bool(is_missing(old) and is_missing(new))
    if isinstance(old, list | tuple):
        return (
            isinstance(new, list | tuple) and len(new) == len(old) and all(map(same_cell, new, old))
        )
    if isinstance(old, dict):
        return (
            isinstance(new, dict)
            and list(new) == list(old)
            and all(same_cell(new[key], old[key]) for key in old)
        )
    if isinstance(old, float):
        return type(new) is float and (new == old or (math.isnan(new) and math.isnan(old)))
    return type(new) is type(old) and new == old


def assert_same(new: pd.DataFrame, old: pd.DataFrame) -> None:
    assert list(new.columns) == [str(name) for name in old.columns]
    assert len(new) == len(old)
    for name in old.columns:
        first, second = new[str(name)], old[name]
        texts = isinstance(second.dtype, pd.StringDtype) or second.dtype == object
        if not texts:
            assert first.dtype == second.dtype, name
        for row, (one, other) in enumerate(zip(first, second, strict=True)):
            assert same_cell(one, other), (name, row, one, other)


@pytest.mark.timeout(900)
@settings(
    max_examples=cases(15, 600),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(frame=some_frames())
def test_every_pair_of_files_holds_the_same(tmp_path: Path, frame: pd.DataFrame) -> None:
    for first, second in PAIRS:
        one, other = tmp_path / f"one{first}", tmp_path / f"other{second}"
        frames.write(frame, one, first)
        before = read_frame(one)
        assert_same(before, frame)
        convert(one, other, force=True)
        assert_same(read_frame(other), before)


@pytest.mark.parametrize(
    "path", few_fast(FRAMES), ids=lambda path: f"{path.parent.name}-{path.stem}"
)
def test_frames_of_every_pandas_are_kept(tmp_path: Path, path: Path) -> None:
    if path.stem == "empty":
        pytest.skip("a frame without rows can't be read")
    before = read_frame(path)
    for ending in ENDINGS:
        convert(path, tmp_path / f"a{ending}")
        assert_same(read_frame(tmp_path / f"a{ending}"), before)


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_samples_are_the_same(tmp_path: Path, ending: str) -> None:
    convert(TINY, tmp_path / f"a{ending}")
    assert samples(read_frame(tmp_path / f"a{ending}")) == samples(read_frame(TINY))


def test_other_programs_read_the_same_text_and_numbers(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "ground_truth": objects(["042", 7, 2.5, None]),
            "ids": objects([[1, 2], [3], [], [4]]),
            "n": [1, 2, 3, 4],
        }
    )
    frames.write(frame, tmp_path / "a.parquet", ".parquet")
    plain = pq.read_table(tmp_path / "a.parquet").to_pylist()
    assert plain[1] == {"ground_truth": "7", "ids": [3], "n": 2}
    assert plain[3]["ground_truth"] is None
    frames.write(frame, tmp_path / "a.jsonl", ".jsonl")
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert lines[0] == {"ground_truth": "042", "ids": [1, 2], "n": 1}  # nothing but the row


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ("[]", "is not an object"),
        ('{"a": 1}', "is not an object"),
        ('{"b": "object"}', "names the column 'b', which is not"),
        ('{"a": "other"}', "has the unknown kind 'other'"),
        ('{"a": "mixed:x1"}', "has the unknown kind 'mixed:x1'"),
        ('{"a": "mixed:s1s0"}', "unknown kind"),
        ('{"a": "mixed:s999999999"}', "another number of rows than 1"),
        ('{"a": "mixed:i1"}', "invalid literal"),
        ('{"a": "int64"}', "says int64 of a column with other values"),
        ('{"a": "float64"}', "says float64 of"),
        ('{"a": "datetime64[s]"}', "datetime"),
    ],
)
def test_kinds_that_can_t_be_are_named(tmp_path: Path, found: str, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"#columns": {found}, "a": "text"}}\n')
    with pytest.raises(InputFileError, match=f"not a .jsonl data frame: .*{message}"):
        read_frame(path)


def test_nothing_is_replaced_unasked(tmp_path: Path) -> None:
    target = tmp_path / "a.parquet"
    target.write_text("mine")
    with pytest.raises(UsageError, match=r"a.parquet exists: choose another name, or add --force"):
        convert(TINY, target)
    assert target.read_text() == "mine"
    convert(TINY, target, force=True)
    with pytest.raises(UsageError, match="is the input itself"):
        convert(target, target, force=True)
    with pytest.raises(UsageError, match=r"expected a name that ends in \.pkl"):
        convert(TINY, tmp_path / "a.csv")
    with pytest.raises(OutputError, match="can't be written"):
        convert(TINY, Path("/proc/none/a.pkl"))
    (tmp_path / "bad.pkl").write_text("no")
    with pytest.raises(InputFileError, match=r"bad.pkl"):
        convert(tmp_path / "bad.pkl", target, force=True)
    assert len(read_frame(target)) == 240


def test_a_name_that_json_lines_use_is_refused(tmp_path: Path) -> None:
    pd.DataFrame({kinds.KEY: [1]}).to_pickle(tmp_path / "a.pkl")
    with pytest.raises(ColumnsError, match=r"^.*a.jsonl: column #columns: rename it"):
        convert(tmp_path / "a.pkl", tmp_path / "a.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["a.pkl"]


@pytest.mark.slow
def test_an_interrupt_leaves_no_half_file(tmp_path: Path) -> None:
    rows = 60_000
    frame = pd.DataFrame({"a": objects([list(range(70))] * rows)})
    frames.write(frame, tmp_path / "a.parquet", ".parquet")
    words = [sys.executable, "-m", "data.convert", str(tmp_path / "a.parquet")]
    words.append(str(tmp_path / "b.jsonl"))
    process = subprocess.Popen(words, cwd=Path(__file__).parents[2], stderr=subprocess.PIPE)
    until = time.monotonic() + 60
    while not list(tmp_path.glob(".b.jsonl.*.partial")):
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]
