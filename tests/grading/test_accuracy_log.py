"""LoadGen's accuracy log is read completely, or refused with a reason."""

import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from errors import GradingError, InputFileError
from grading import accuracy_log


def _entry(index: int, ids: list[int], **more: int) -> dict:
    data = struct.pack(f"<{len(ids)}i", *ids).hex().upper()
    return {"seq_id": index + 10, "qsl_idx": index, "data": data} | more


def _log(path: Path, entries: list[dict]) -> Path:
    # spelled as LoadGen spells it
    path.write_text("[" + ",".join(f"\n{{ {json.dumps(e)[1:-1]} }}" for e in entries) + "\n]\n")
    return path


ENTRIES = [_entry(1, [7, 128798, 3], token_count=3), _entry(0, [1]), _entry(2, [9, 0])]


WANTED = [(0, (1,)), (1, (7, 128798, 3)), (2, (9, 0))]


def _read(path: Path, rows: int | None = None) -> list[tuple[int, tuple[int, ...]]]:
    log = accuracy_log.read(path, rows)
    assert log.id_bytes == 4
    return [(index, tuple(ids.tolist())) for index, ids in log.answers]


def test_a_whole_log_is_read_in_order(tmp_path: Path) -> None:
    path = _log(tmp_path / "log.json", ENTRIES)
    assert _read(path) == WANTED
    assert _read(path, rows=3) == WANTED
    assert _read(path, rows=5) == WANTED


@pytest.mark.parametrize(
    "spell",
    [
        json.dumps,
        lambda entries: json.dumps(entries, indent=2),
        lambda entries: json.dumps(entries).lower() + "\n",
        lambda entries: "".join(json.dumps(entry) + "\n" for entry in entries),
        lambda entries: "\r\n\r\n".join(json.dumps(entry) for entry in entries),
        lambda entries: json.dumps([e | {"token_data": "05000000"} for e in entries]),
        lambda entries: json.dumps([{"data": e["data"], "qsl_idx": e["qsl_idx"]} for e in entries]),
        lambda entries: json.dumps([e | {"token_count": len(e["data"]) // 8} for e in entries]),
        lambda entries: json.dumps([e | {"token_count": 99} if e["qsl_idx"] else e
                                    | {"token_count": 1} for e in entries]),
    ],
    ids=range(9),
)  # fmt: skip
def test_every_spelling_is_read(tmp_path: Path, spell: Callable[[list[dict]], str]) -> None:
    (tmp_path / "log.json").write_text(spell(ENTRIES))
    assert _read(tmp_path / "log.json", 3) == WANTED


@pytest.mark.parametrize("counted", [False, True])
def test_ids_of_eight_bytes_are_recognised(tmp_path: Path, counted: bool) -> None:
    entries = [
        {"qsl_idx": i, "data": struct.pack(f"<{len(ids)}q", *ids).hex()}
        | ({"token_count": len(ids)} if counted else {})
        for i, ids in WANTED
    ]
    log = accuracy_log.read(_log(tmp_path / "log.json", entries))
    assert log.id_bytes == 8
    assert [(i, tuple(ids.tolist())) for i, ids in log.answers] == WANTED


def test_counts_tell_small_ids_from_wide_ones(tmp_path: Path) -> None:
    assert _read(_log(tmp_path / "log.json", [_entry(0, [5, 0], token_count=2)])) == [(0, (5, 0))]


def test_loadgens_own_log_is_read(tmp_path: Path) -> None:
    # what LoadGen's source writes: upper case, blanks, its keys, one entry a line
    (tmp_path / "log.json").write_text(
        '[\n{ "seq_id" : 0, "qsl_idx" : 1, "data" : "0A000000FF010000", "token_data" : "0A000000",'
        ' "token_count" : 2 },\n{ "seq_id" : 1, "qsl_idx" : 0, "data" : "01000000", "token_data" :'
        ' "01000000", "token_count" : 1 }\n]\n'
    )
    assert _read(tmp_path / "log.json", 2) == [(0, (1,)), (1, (10, 511))]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], "no answers: only an accuracy run"),
        ([_entry(0, [5]), _entry(2, [5])], "no answers to samples 1, but answers to later ones"),
        ([_entry(9, [5])], "no answers to samples 0, 1, 2, 3, 4, …, but"),
        ([_entry(0, [5]), _entry(0, [5])], "answers sample 0 a second time"),
        ([_entry(-1, [5])], "entry 0 has qsl_idx -1"),
        (
            [_entry(0, [5]), _entry(10, [5])],
            "entry 1 has qsl_idx 10, outside the data",
        ),
        ([_entry(0, [5]) | {"data": "0g000000"}], "entry 0: data is not hexadecimal"),
        ([_entry(0, [5]) | {"data": "050000"}], "data of 3 bytes can't be int32"),
        ([_entry(0, [])], "data of 0 bytes can't be int32"),
        ([_entry(0, [-5])], "not token ids"),
        ([_entry(0, [struct.unpack("<i", struct.pack("<f", 5.0))[0]])], "not token ids"),
        ([_entry(0, [5, 0, 6, 8], token_count=2)], "some answers have ids of 8 bytes"),
        (
            [_entry(0, [5, 0], token_count=1), _entry(1, [6], token_count=1)],
            "some answers have ids of 8 bytes",
        ),
        ([_entry(0, [5, 6], token_count=4)], "no answer has token_count ids"),
        ([_entry(0, [struct.unpack("<i", struct.pack("<2e", 5, 6))[0]])], "not token ids"),
        ([{"seq_id": 0, "data": "05000000"}], "entry 0 lacks qsl_idx .*or data"),
        ([_entry(0, [5]) | {"qsl_idx": "0"}], "entry 0 lacks qsl_idx .*or data"),
        ([_entry(0, [5]) | {"qsl_idx": True}], "entry 0 lacks qsl_idx .*or data"),
        ([_entry(0, [5]) | {"data": None}], "entry 0 lacks qsl_idx .*or data"),
    ],
)
def test_what_cannot_be_used_is_an_error(tmp_path: Path, entries: list[dict], message: str) -> None:
    with pytest.raises(GradingError, match=message):
        accuracy_log.read(_log(tmp_path / "log.json", entries), rows=10)


@pytest.mark.parametrize("content", ["", "{}", "[1]", '"x"', "[" * 100_000, "null"], ids=range(6))
def test_other_json_is_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "log.json").write_text(content)
    with pytest.raises(GradingError):
        accuracy_log.read(tmp_path / "log.json")


def test_a_log_cut_short_anywhere_is_an_error(tmp_path: Path) -> None:
    path = _log(tmp_path / "log.json", ENTRIES)
    whole = path.read_text().rstrip()
    for end in range(len(whole)):
        path.write_text(whole[:end])
        with pytest.raises(
            GradingError, match="did not finish" if end else "no answers: only an accuracy run"
        ):
            accuracy_log.read(path)
    path.write_text(whole[:-1].rstrip() + ",\n]")
    with pytest.raises(
        GradingError, match="incomplete JSON after 3 answers: the run did not finish"
    ):
        accuracy_log.read(path)
    path.write_text(whole + " []")
    with pytest.raises(GradingError, match="more text after the end"):
        accuracy_log.read(path)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match="No such file"):
        accuracy_log.read(tmp_path / "none.json")


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_wild_data_is_ids_or_a_named_error(tmp_path: Path, data: bytes) -> None:
    entry = {"qsl_idx": 0, "seq_id": 0, "data": data.hex()}
    path = _log(tmp_path / "log.json", [entry])
    try:
        log = accuracy_log.read(path)
    except GradingError:
        return
    ((_, ids),) = log.answers
    assert struct.pack(f"<{len(ids)}{'q' if log.id_bytes == 8 else 'i'}", *ids) == data


@given(st.binary(max_size=40))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_wild_files_are_a_named_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "log.json").write_bytes(content)
    with pytest.raises(GradingError):
        accuracy_log.read(tmp_path / "log.json")


@pytest.mark.parametrize(
    ("ids", "left"), [([1], []), ([5], []), ([7], [7]), ([7, 1], [7, 1]), ([1, 1], [1, 1])]
)
def test_only_a_lone_stop_id_stands_for_an_empty_answer(ids: list[int], left: list[int]) -> None:
    assert accuracy_log.without_stop(np.array(ids), frozenset({1, 5})).tolist() == left


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
@pytest.mark.parametrize("lines", [False, True])
def test_a_byte_order_mark_is_passed_over(tmp_path: Path, encoding: str, lines: bool) -> None:
    path = tmp_path / "log.json"
    spelled = "\n".join(map(json.dumps, ENTRIES)) if lines else json.dumps(ENTRIES)
    path.write_text(spelled, encoding=encoding)
    assert _read(path) == WANTED


def test_what_is_no_text_and_where_a_log_breaks_off_is_named(tmp_path: Path) -> None:
    path = tmp_path / "log.json"
    path.write_bytes(b'[{"qsl_idx": "\xff"}]')
    with pytest.raises(GradingError, match="not JSON: byte 14 is not valid utf-8"):
        _read(path)
    path.write_text(json.dumps(ENTRIES[1]) + '\n{"qsl_idx" 1}\n' + json.dumps(ENTRIES[0]))
    with pytest.raises(GradingError, match="line 2: incomplete JSON after 1 answers"):
        _read(path)
