"""The log of grades: what it keeps, what is graded again, what it refuses."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from errors import InputFileError, OutputError
from grading.grades_log import GradesLog
from grading.tasks import Grade

GRADES = [
    ("a", Grade(0, "B", "ok", "answer line, letter", 0.5)),
    ("b", Grade(1, None, "no_answer", "no answer", 0.0)),
    ("c", Grade(2, "\ud800", "timeout", "boxed", 5.0, "no answer within 5 s")),
    ("d", Grade(3, 42, "wrong", "boxed, integer", 0.1)),
    ("e", Grade(4, "x", "sandbox_error", "boxed", 0.1, "it broke")),
    ("f", Grade(5, "x", "not_graded", "boxed", 0.1, "there is none")),
]


def _write(path: Path, grades: Sequence[tuple[str, Grade]] = GRADES) -> None:
    with GradesLog(path) as log:
        for key, grade in grades:
            log.add(key, grade)


def test_verdicts_are_kept_and_the_rest_is_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "a_grades.jsonl"
    _write(path)
    with GradesLog(path) as log:
        assert log.earlier == dict(GRADES[:4])
        log.add(*GRADES[4])
    assert path.read_bytes().count(b"\n") == 7
    with GradesLog(path, fresh=True) as log:
        assert log.earlier == {}
    assert path.read_bytes() == b""


def test_a_torn_last_line_is_cut_off_wherever_it_is_torn(tmp_path: Path) -> None:
    path = tmp_path / "a_grades.jsonl"
    _write(path, GRADES[:2])
    whole = path.read_bytes()
    for end in range(whole.index(b"\n") + 1, len(whole)):
        path.write_bytes(whole[:end])
        with GradesLog(path) as log:
            assert log.earlier == dict(GRADES[:1])
            log.add(*GRADES[3])
        with GradesLog(path) as log:
            assert log.earlier == dict([GRADES[0], GRADES[3]])


@pytest.mark.parametrize(
    "change",
    [{"status": "fine"}, {"status": None}, {"more": 1}, {"hash": None, "seconds": None}],
    ids=str,
)
def test_what_is_no_grade_is_named(tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / "a_grades.jsonl"
    _write(path, GRADES[:1])
    row = json.loads(path.read_text()) | change
    if row["hash"] is None:
        del row["hash"]
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(InputFileError, match=r"line 1 is not a grade: use --fresh"):
        GradesLog(path)
    GradesLog(path, fresh=True).__exit__(None, None, None)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="can't be written"):
        GradesLog(tmp_path / "none" / "a_grades.jsonl")
