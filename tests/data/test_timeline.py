from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.timeline import Metadata, Timeline, read_timeline, write_timeline
from errors import InputFileError

LARGE = (1 << 62) + 1  # LoadGen's query ids are addresses: a double would round them
METADATA = Metadata("server", "performance", "echo", 1_800_000_000.25)
REQUESTS: dict[str, list[Any]] = {
    "request_id": [LARGE, LARGE + 2, 7],
    "sample_index": [5, 5, 0],
    "arrival_s": [0.25, 0.5, 0.75],
    "first_token_s": [0.5, 0.75, None],
    "finish_s": [0.75, 1.5, None],
    "prompt_tokens": [10, 10, 3],
    "answer_tokens": [4, 0, None],
    "finish": ["length", "stop", None],
    "endpoint": ["http://a", "http://b", None],
}
SECONDS: dict[str, list[Any]] = {
    "arrival_s": [0.0, 1.0],
    "finish_s": [1.0, 1.5],
    "tokens": [3, 1],
    "running": [2, None],
    "waiting": [None, None],
    "cache_use": [0.5, None],
    "preemptions": [None, 1],
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "timeline.parquet"
    write_timeline(path, REQUESTS, SECONDS, METADATA)
    return path


def same(one: Timeline, other: Timeline) -> bool:
    return (
        one.requests.equals(other.requests)
        and one.seconds.equals(other.seconds)
        and one.metadata == other.metadata
    )


def test_what_is_written_is_read(path: Path) -> None:
    timeline = read_timeline(path)
    assert timeline.metadata == METADATA
    for frame, columns in ((timeline.requests, REQUESTS), (timeline.seconds, SECONDS)):
        assert set(frame.columns) == set(columns)
        for name, values in columns.items():
            cells = frame[name].tolist()
            assert [None if cell != cell else cell for cell in cells] == values, name


def test_a_run_without_requests_has_a_timeline(tmp_path: Path) -> None:
    path = tmp_path / "timeline.parquet"
    write_timeline(path, dict.fromkeys(REQUESTS, ()), dict.fromkeys(SECONDS, ()), METADATA)
    timeline = read_timeline(path)
    assert timeline.requests.empty
    assert timeline.seconds.empty


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_is_named_or_reads_as_it_was(path: Path, data: st.DataObject) -> None:
    content = path.read_bytes()
    whole = read_timeline(path)
    at = data.draw(st.integers(0, len(content) - 1), "at")
    if data.draw(st.booleans(), "cut off"):
        altered = content[:at]
    else:
        altered = content[:at] + bytes([data.draw(st.integers(0, 255))]) + content[at + 1 :]
    other = path.with_name("altered.parquet")
    other.write_bytes(altered)
    message = ""
    try:
        timeline = read_timeline(other)
    except InputFileError as error:
        message = str(error)
    if message:
        assert message.startswith(f"{other}: ")
        assert "\n" not in message
    else:
        assert same(timeline, whole)


def test_other_files_are_named(path: Path, tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match=r"none\.parquet: can't be read: No such file"):
        read_timeline(tmp_path / "none.parquet")
    other = tmp_path / "other.parquet"
    table = pq.read_table(path)
    for changed, message in (
        (table.replace_schema_metadata(), "not a timeline: run_mlperf writes one"),
        (table.slice(1), "damaged: it has 4 of 5 rows"),
        (table.drop_columns(["finish"]), "its columns are not a timeline's: 'kind string, "),
        (table.set_column(0, "kind", pa.array(["\x1b[2J"] * 5)), r"kind '\\x1b\[2J': it must be"),
    ):
        pq.write_table(changed, other)
        with pytest.raises(InputFileError, match=rf"other\.parquet: {message}"):
            read_timeline(other)


def test_a_timeline_of_another_version_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "timeline.parquet"
    with monkeypatch.context() as patch:
        patch.setattr("data.timeline.VERSION", 2)
        write_timeline(path, REQUESTS, SECONDS, replace(METADATA, scenario=None))
    with pytest.raises(InputFileError, match="of version 2, and this program reads version 1"):
        read_timeline(path)
