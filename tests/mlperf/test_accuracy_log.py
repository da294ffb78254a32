"""LoadGen's accuracy log: read whole, or refused with the reason."""

import json
import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlperf import accuracy_log
from ref_dsinfer.errors import GradingError, InputFileError


def _entry(index, ids, **more):
    data = struct.pack(f"<{len(ids)}i", *ids).hex().upper()
    return {"seq_id": index + 10, "qsl_idx": index, "data": data} | more


def _log(path, entries):
    # spelled as LoadGen spells it
    path.write_text("[" + ",".join(f"\n{{ {json.dumps(e)[1:-1]} }}" for e in entries) + "\n]\n")
    return path


ENTRIES = [_entry(1, [7, 128798, 3], token_count=3), _entry(0, [1]), _entry(2, [9, 0])]


def test_a_whole_log_is_read_in_order(tmp_path):
    path = _log(tmp_path / "log.json", ENTRIES)
    wanted = [(0, (1,)), (1, (7, 128798, 3)), (2, (9, 0))]
    assert accuracy_log.read(path) == wanted
    assert accuracy_log.read(path, rows=3) == wanted
    assert accuracy_log.read(path, rows=5) == wanted


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], "holds no answers"),
        ([_entry(0, [5]), _entry(2, [5])], "sample 1 has no answer"),
        ([_entry(0, [5]), _entry(0, [5])], "answers sample 0 a second time"),
        ([_entry(-1, [5])], "entry 0 has qsl_idx -1"),
        ([_entry(0, [5]), _entry(3, [5])], "entry 1 has qsl_idx 3, outside the data set's 3 rows"),
        ([_entry(0, [5]) | {"data": "0g000000"}], "entry 0: data is not hexadecimal"),
        ([_entry(0, [5]) | {"data": "050000"}], "3 bytes of data are no int32"),
        ([_entry(0, [])], "0 bytes of data are no int32"),
        ([_entry(0, [-5])], "no token ids"),
        ([_entry(0, [struct.unpack("<i", struct.pack("<f", 5.0))[0]])], "no token ids"),
        ([_entry(0, [5, 0, 6, 0]), _entry(1, [7, 0])], "logged as int64"),
        ([_entry(0, [5, 0, 6, 8], token_count=2)], "logged as int64"),
        ([{"seq_id": 0, "data": "05000000"}], "entry 0 lacks qsl_idx or data"),
        ([_entry(0, [5]) | {"qsl_idx": "0"}], "entry 0 lacks qsl_idx or data"),
        ([_entry(0, [5]) | {"qsl_idx": True}], "entry 0 lacks qsl_idx or data"),
        ([_entry(0, [5]) | {"data": None}], "entry 0 lacks qsl_idx or data"),
    ],
)
def test_what_cannot_be_used_is_an_error(tmp_path, entries, message):
    with pytest.raises(GradingError, match=message):
        accuracy_log.read(_log(tmp_path / "log.json", entries), rows=3)


@pytest.mark.parametrize("content", ["", "{}", "[1]", '"x"', "[" * 100_000, "null"], ids=range(6))
def test_other_json_is_an_error(tmp_path, content):
    (tmp_path / "log.json").write_text(content)
    with pytest.raises(GradingError):
        accuracy_log.read(tmp_path / "log.json")


def test_a_log_cut_short_anywhere_is_an_error(tmp_path):
    path = _log(tmp_path / "log.json", ENTRIES)
    whole = path.read_text().rstrip()
    for end in range(len(whole)):
        path.write_text(whole[:end])
        with pytest.raises(GradingError):
            accuracy_log.read(path)


def test_no_such_file(tmp_path):
    with pytest.raises(InputFileError, match="No such file"):
        accuracy_log.read(tmp_path / "none.json")


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_wild_data_is_ids_or_a_named_error(tmp_path, data):
    entry = {"qsl_idx": 0, "seq_id": 0, "data": data.hex()}
    path = _log(tmp_path / "log.json", [entry])
    try:
        ((_, ids),) = accuracy_log.read(path)
    except GradingError:
        return
    assert struct.pack(f"<{len(ids)}i", *ids) == data


@given(st.binary(max_size=40))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_wild_files_are_a_named_error(tmp_path, content):
    (tmp_path / "log.json").write_bytes(content)
    with pytest.raises(GradingError):
        accuracy_log.read(tmp_path / "log.json")


def test_only_a_lone_stop_id_stands_for_an_empty_answer():
    stops = frozenset({1, 5})
    assert accuracy_log.without_stop((1,), stops) == ()
    assert accuracy_log.without_stop((5,), stops) == ()
    assert accuracy_log.without_stop((7,), stops) == (7,)
    assert accuracy_log.without_stop((7, 1), stops) == (7, 1)
