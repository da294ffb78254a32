"""LiveCodeBench's problems: every form they come in, the store, and what is wrong with them."""

import base64
import json
import os
import pickle
import sqlite3
import tracemalloc
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import livecodebench, problems
from data.livecodebench import Case
from data.problems import Problems, build
from errors import GradingError, OutputError

Way = Callable[[Path], Problems]


def packed(pickled: bytes) -> str:
    return base64.b64encode(zlib.compress(pickled)).decode()


def doubling(times: int) -> bytes:
    """A pickle of a dictionary whose key would take until the end of time to hash."""
    twice = b"".join(b"h%ch%c\x86\x94" % (at, at) for at in range(times))
    return b"\x80\x04)\x94" + twice + b"}h%cNs." % times


def row(question_id: str = "q1", **changes: Any) -> dict[str, Any]:
    return {
        "question_id": question_id,
        "public_test_cases": '[{"input": "1", "output": "1", "testtype": "stdin"}]',
        "private_test_cases": "[]",
        "metadata": "{}",
    } | changes


def written(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("\n\n".join(map(json.dumps, rows)) + "\n")
    return path


def through_a_store(path: Path) -> Problems:
    store = path.with_suffix(".sqlite")
    build([path], store)
    return Problems(store)


@pytest.fixture(params=[Problems, through_a_store], ids=["lines", "store"])
def way(request: pytest.FixtureRequest) -> Way:
    """Both ways from a JSON-lines file to its problems."""
    opened: Way = request.param
    return opened


def test_private_tests_in_both_spellings(tmp_path: Path, way: Way) -> None:
    tests = json.dumps([{"input": "2", "output": "4", "testtype": "stdin"}])
    path = written(
        tmp_path / "p.jsonl",
        row("plain", private_test_cases=tests),
        row(
            "packed",
            private_test_cases=packed(pickle.dumps(tests)),
            metadata='{"func_name": "f"}',
        ),
    )
    reader = way(path)
    assert "plain" in reader
    assert "none" not in reader
    plain, other = reader.read("plain"), reader.read("packed")
    assert list(plain.tests) == list(other.tests) == [Case("1", "1"), Case("2", "4")]
    assert plain.tests[-1] == Case("2", "4")
    assert list(plain.tests[1:]) == [Case("2", "4")]
    with pytest.raises(IndexError):
        plain.tests[2]
    assert (plain.function, other.function) == (None, "f")
    with pytest.raises(GradingError, match="has no problem none"):
        reader.read("none")


def test_a_store_has_the_digests_of_the_lines(tmp_path: Path) -> None:
    path = written(tmp_path / "p.jsonl", row("a"), row("b"))
    lines, store = Problems(path), through_a_store(path)
    assert [lines.digest(one) for one in "ab"] == [store.digest(one) for one in "ab"]


def test_texts_of_every_pickle_are_read(tmp_path: Path, way: Way) -> None:
    tests = json.dumps([{"input": "2ä\ud800" * 99, "output": "4"}], ensure_ascii=False)
    rows = [
        row(str(protocol), private_test_cases=packed(pickle.dumps(tests, protocol)))
        for protocol in range(6)
    ]
    reader = way(written(tmp_path / "p.jsonl", *rows))
    for protocol in range(6):
        assert list(reader.read(str(protocol)).tests[1:]) == [Case("2ä\ud800" * 99, "4")]


class Attack:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch attacked",)


@pytest.mark.parametrize(
    "changes",
    [
        {"private_test_cases": packed(pickle.dumps(Attack()))},
        {"private_test_cases": packed(pickle.dumps(["a list"]))},
        {"private_test_cases": "!!"},
        {"private_test_cases": base64.b64encode(b"no zlib").decode()},
        {"private_test_cases": packed(b"\x80\x05no")},
        {"private_test_cases": packed(b"")},
        {"private_test_cases": "{}"},
        {"private_test_cases": None},
        {"private_test_cases": packed(b"\x80\x05\x96" + (1 << 34).to_bytes(8, "little") + b".")},
        {"private_test_cases": packed(doubling(60))},
        {"private_test_cases": packed(pickle.dumps("[]")[:-1] + b"\x8c\x021]\x86.")},
        {"private_test_cases": packed(pickle.dumps("[]")[:-1])},
        {"public_test_cases": "[{}]"},
        {"public_test_cases": '[{"input": 1, "output": 1}]'},
        {"public_test_cases": '[{"input": "1", "output": null}]'},
        {"public_test_cases": "[" * 100_000},
        {"metadata": "[]"},
        {"metadata": '{"func_name": 7}'},
        {"metadata": '{"func_name": "\\ud800"}'},
    ],
    ids=range(19),
)
def test_a_problem_that_cannot_be_read_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = written(tmp_path / "p.jsonl", row("q0"), row("q1", **changes))
    with pytest.raises(GradingError, match="problem q1 can't be read"):
        Problems(path).read("q1")
    with pytest.raises(GradingError, match="line 3 can't be read"):
        build([path], tmp_path / "store")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["p.jsonl"]


def test_tests_that_decompress_without_end_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(livecodebench, "LARGEST", 1 << 20)
    bomb = packed(pickle.dumps("[" + " " * (64 << 20) + "]"))
    path = written(tmp_path / "p.jsonl", row(private_test_cases=bomb))
    tracemalloc.start()
    with pytest.raises(GradingError, match="more than 1048576 bytes"):
        Problems(path).read("q1")
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()
    with path.open("a") as file:
        file.write("[" + " " * (2 << 20))
    with pytest.raises(GradingError, match="line 2 is longer than 1048576 bytes"):
        Problems(path)


@pytest.mark.parametrize(
    "line", ["{}", "[1]", "{", "[" * 100_000, '"x"', '{"question_id": "\\ud800"}'], ids=range(6)
)
def test_a_file_that_holds_no_problems_says_so(tmp_path: Path, line: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(line)
    with pytest.raises(GradingError, match="line 1"):
        Problems(path)
    with pytest.raises(GradingError, match="line 1"):
        build([path], tmp_path / "store")
    with pytest.raises(GradingError, match="can't be read"):
        Problems(tmp_path / "none.jsonl")
    (tmp_path / "empty").mkdir()
    with pytest.raises(GradingError, match=r"no \.jsonl file in this folder"):
        Problems(tmp_path / "empty")
    with pytest.raises(GradingError, match="no such file"):
        build([tmp_path / "none.jsonl"], tmp_path / "store")


def test_folders_and_parquet_are_sources(tmp_path: Path) -> None:
    folder = tmp_path / "lcb"
    folder.mkdir()
    written(folder / "test.jsonl", row("a"), row("b"))
    written(folder / "test2.jsonl", row("c"), row("a"))  # a problem again, the same
    assert "c" in Problems(folder)
    dates = pd.to_datetime(["2024-01-01"] * 2)
    pd.DataFrame([row("d"), row("e")]).assign(contest_date=dates).to_parquet(
        folder / "test3.parquet"
    )
    assert build([folder], tmp_path / "store") == 5
    reader = Problems(tmp_path / "store")
    assert all(one in reader for one in "abcde")
    assert list(reader.read("e").tests) == [Case("1", "1")]
    with pytest.raises(GradingError, match=r"test.jsonl: line 3: another problem has the id b"):
        build([written(tmp_path / "p.jsonl", row("b", metadata=None)), folder], tmp_path / "no")
    (folder / "test3.parquet").write_bytes(b"PAR1")
    with pytest.raises(GradingError, match=r"test3.parquet: can't be read"):
        build([folder], tmp_path / "store")
    assert len(list(Problems(tmp_path / "store").read("a").tests)) == 1  # the old one is whole


@pytest.fixture
def store(tmp_path: Path) -> Path:
    tests = json.dumps([{"input": str(one), "output": "x" * 5000} for one in range(200)])
    rows = [row(f"q{one}", private_test_cases=tests) for one in range(10)]
    build([written(tmp_path / "p.jsonl", *rows)], tmp_path / "store.sqlite")
    return tmp_path / "store.sqlite"


def test_a_store_of_another_version_or_kind_is_refused(store: Path, tmp_path: Path) -> None:
    with sqlite3.connect(store) as database:
        database.execute(f"PRAGMA user_version = {problems.VERSION + 1}")
    with pytest.raises(GradingError, match="its version is 2, and only 1 can be read: build it"):
        Problems(store)
    with sqlite3.connect(tmp_path / "other") as database:
        database.execute("CREATE TABLE a (b)")
    with pytest.raises(GradingError, match="not one of LiveCodeBench problems"):
        Problems(tmp_path / "other")


def test_a_truncated_store_is_named(store: Path) -> None:
    content = store.read_bytes()
    for size in (100, 4096, len(content) // 2, len(content) - 1):
        store.write_bytes(content[:size])
        with pytest.raises(GradingError, match=r"store.sqlite: the store is damaged"):
            Problems(store)


@given(st.integers(100, 1 << 30), st.integers(1, 255))
@settings(max_examples=50, deadline=None)
def test_a_flipped_byte_is_named_or_without_effect(
    tmp_path_factory: pytest.TempPathFactory, offset: int, bits: int
) -> None:
    folder = tmp_path_factory.getbasetemp() / "flipped"
    if not folder.exists():
        folder.mkdir()
        written(folder / "p.jsonl", *(row(f"q{one}") for one in range(30)))
        build([folder / "p.jsonl"], folder / "store")
    content = bytearray((folder / "store").read_bytes())
    content[offset % len(content)] ^= bits
    (folder / "damaged").write_bytes(content)
    try:
        reader = Problems(folder / "damaged")
        read = [list(reader.read(f"q{one}").tests) for one in range(30) if f"q{one}" in reader]
    except GradingError as error:
        read = []
        named = str(error).startswith(f"{folder / 'damaged'}: ")
    else:
        named = True
    assert named
    assert all(tests == [Case("1", "1")] for tests in read)


def test_damage_in_the_text_of_an_error_is_named(store: Path) -> None:
    content = store.read_bytes()
    name = content.index(b"CREATE TABLE problems") + len("CREATE ")
    store.write_bytes(content[:name] + b"\xc1" + content[name + 1 :])  # no UTF-8
    with pytest.raises(GradingError, match=r"store.sqlite: the store is damaged"):
        Problems(store)


def test_threads_share_a_store_in_little_memory(store: Path) -> None:
    reader = Problems(store)
    tracemalloc.start()
    with ThreadPoolExecutor(8) as pool:
        sums = pool.map(
            lambda one: sum(int(test.input) for test in reader.read(f"q{one}").tests), range(10)
        )
        assert set(sums) == {sum(range(200)) + 1}
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 19  # the tests of one problem take 1 MB


def test_the_same_problems_give_the_same_bytes(store: Path, tmp_path: Path) -> None:
    assert build([tmp_path / "p.jsonl"], tmp_path / "new") == 10
    assert not list(tmp_path.glob(".new*"))
    assert (tmp_path / "new").read_bytes() == store.read_bytes()


def test_a_store_that_can_not_be_written_says_so(store: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="can't be written"):
        build([tmp_path / "p.jsonl"], tmp_path / "none" / "store")
