"""The journal: what is read from it, also after damage."""

import json
import os
import random
import subprocess
import sys
import time
from array import array
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backends.types import Completion
from data.journal import MAGIC, Answer, Journal, read_journal, resumable
from errors import InputFileError, OutputError

ANSWERS: list[Answer] = [
    (1, Completion(12, array("i", [5, 6, 7]), "stop", 100, 200)),
    (0, Completion(1 << 63, array("i"), "stop", 150, 150)),
    (2, Completion(3, array("i", [8] * 1000), "length", -1, 2)),
    (4387, Completion(4, array("i", [1 << 24]), "length", 1, 2)),
]
INPUTS = {"the model": "tiny", "the seed": 1}
ROOT = Path(__file__).parents[2]


def _written(path: Path, answers: list[Answer] = ANSWERS) -> Path:
    with Journal(path, INPUTS) as journal:
        for answer in answers:
            journal.add(*answer)
    return path


def _ends(path: Path) -> list[int]:
    """The ends of a journal's start and of its records, in bytes; the journal is left whole."""
    ends = [_written(path, ANSWERS[:n]).stat().st_size for n in range(1, len(ANSWERS) + 1)]
    return [ends[0] - 52 - 4 * len(ANSWERS[0][1].token_ids), *ends]


def test_a_journal_gives_back_what_it_was_given(tmp_path: Path) -> None:
    assert read_journal(_written(tmp_path / "j")) == ANSWERS
    assert read_journal(_written(tmp_path / "j", [])) == []
    assert resumable(_written(tmp_path / "j"), INPUTS) == ANSWERS


def test_an_answer_is_in_the_file_at_once(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", INPUTS) as journal:
        for count, answer in enumerate(ANSWERS, 1):
            journal.add(*answer)
            until = time.monotonic() + 5
            while len(read_journal(tmp_path / "j")) < count:
                assert time.monotonic() < until


def test_what_is_kept_replaces_the_journal_it_came_from(tmp_path: Path) -> None:
    path = _written(tmp_path / "j", ANSWERS[:2])
    kept = resumable(path, INPUTS)
    with Journal(path, INPUTS, kept) as journal:
        assert read_journal(path) == ANSWERS[:2]
        for answer in ANSWERS[2:]:
            journal.add(*answer)
    assert resumable(path, INPUTS) == ANSWERS
    assert kept == ANSWERS[:2]  # the views of the file that was replaced
    assert [one.name for one in tmp_path.iterdir()] == ["j"]


def test_a_torn_end_is_dropped_wherever_it_is_torn(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ends = _ends(tmp_path / "j")
    whole = (tmp_path / "j").read_bytes()
    for end in {*range(ends[2] + 90), *random.sample(range(ends[2], len(whole)), 90), *ends}:
        (tmp_path / "j").write_bytes(whole[:end])
        caplog.clear()
        count = sum(one <= end for one in ends[1:])
        assert read_journal(tmp_path / "j") == ANSWERS[:count]
        assert len(caplog.records) == (end not in (0, *ends))


@given(data=st.data())
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_altered_record_is_dropped_and_never_misread(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, data: st.DataObject
) -> None:
    ends = _ends(tmp_path / "j")
    content = bytearray((tmp_path / "j").read_bytes())
    at = data.draw(st.integers(ends[0], len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    (tmp_path / "j").write_bytes(content)
    caplog.clear()
    victim = sum(end <= at for end in ends[1:])
    assert read_journal(tmp_path / "j") == ANSWERS[:victim] + ANSWERS[victim + 1 :]
    assert len(caplog.records) == 1
    assert f"{tmp_path}/j: dropped " in caplog.text


def test_a_record_that_was_removed_or_repeated_is_no_damage(tmp_path: Path) -> None:
    ends = _ends(tmp_path / "j")
    content = (tmp_path / "j").read_bytes()
    (tmp_path / "j").write_bytes(content[: ends[1]] + content[ends[2] :] + content[ends[1] :])
    assert read_journal(tmp_path / "j") == [ANSWERS[0], *ANSWERS[2:], *ANSWERS[1:]]
    assert [index for index, _ in resumable(tmp_path / "j", INPUTS)] == [1, 2, 4387, 0]


def test_an_altered_start_is_an_error(tmp_path: Path) -> None:
    path = _written(tmp_path / "j")
    content = path.read_bytes()
    path.write_bytes(content.replace(b"tiny", b"TINY"))
    with pytest.raises(InputFileError, match="j: its start is damaged"):
        read_journal(path)
    path.write_bytes(b"{" + content)
    with pytest.raises(InputFileError, match="j: not a journal"):
        read_journal(path)
    with pytest.raises(InputFileError, match="can't be read"):
        read_journal(tmp_path / "none")


@given(st.binary(max_size=80))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_wild_bytes_are_nothing_or_a_named_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "j").write_bytes(content)
    try:
        assert read_journal(tmp_path / "j") == []
    except InputFileError:
        assert not MAGIC.startswith(content)
    _written(tmp_path / "k")
    (tmp_path / "k").write_bytes((tmp_path / "k").read_bytes() + content)
    assert read_journal(tmp_path / "k") == ANSWERS


def test_other_inputs_are_named_and_not_resumed(tmp_path: Path) -> None:
    path = _written(tmp_path / "j")
    with pytest.raises(InputFileError, match="the seed was 1 and is 2: run without --resume"):
        resumable(path, INPUTS | {"the seed": 2})
    with pytest.raises(InputFileError, match="the mode was None and is 'server':"):
        resumable(path, INPUTS | {"the mode": "server"})
    assert resumable(tmp_path / "none", INPUTS) == []


def test_a_journal_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="can't be written"):
        Journal(tmp_path / "none" / "j", INPUTS)
    with pytest.raises(OutputError, match="can't be written"):
        Journal(tmp_path / "none" / "j", INPUTS, ANSWERS)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")  # noqa: PTH110
def test_a_full_disk_is_named_by_the_next_answer_or_at_the_end() -> None:
    def add_until(count: int) -> None:
        with Journal("/dev/full", INPUTS) as journal:
            for _ in range(count):
                journal.add(*ANSWERS[0])
                time.sleep(0.01)
            if count < 1:
                journal.add(*ANSWERS[0])
                raise ZeroDivisionError  # what came first is reported

    for count in (1, 500):
        with pytest.raises(OutputError, match="No space"):
            add_until(count)
    with pytest.raises(ZeroDivisionError):
        add_until(0)


def test_the_command_prints_json_lines(tmp_path: Path) -> None:
    path = _written(tmp_path / "j")
    done = subprocess.run(
        [sys.executable, "-m", "data.journal", path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    first, *rows = map(json.loads, done.stdout.splitlines())
    assert first == {"inputs": INPUTS}
    assert [row["sample_index"] for row in rows] == [index for index, _ in ANSWERS]
    assert rows[0]["token_ids"] == [5, 6, 7]
    assert rows[0]["finish"] == "stop"
