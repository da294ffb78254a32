"""The log of graded rows: what a run that was killed has graded is not graded again.

A grade is kept under the hash of all that it depends on (`grading.pool.content_hash`), so a
log may serve another file of answers, and one of other rules serves nobody.
"""

from pathlib import Path
from typing import Any, get_args

from data.jsonl import Lines, read_lines
from grading.tasks import Grade, Status

_FIELDS = {"hash", "extracted", "status", "rule", "seconds", "detail", "sample_index"}


class GradesLog(Lines):
    """Grades, one JSON line each, on disk as soon as they are given.

    `fresh`: begin anew; otherwise `kept` has the grades of earlier runs by their hash, but for
    those that were no verdict, which are tried again.

    Raises: OutputError; InputFileError if the file holds something else.
    """

    def __init__(self, path: Path, fresh: bool = False) -> None:
        self.kept: dict[str, Grade] = {}
        if not fresh and path.exists():
            grades = read_lines(path, _parsed, "a grade (--fresh begins a new log)")
            self.kept = {key: grade for key, grade in grades if grade.judged}
        super().__init__(path, keep=not fresh)

    def add(self, key: str, grade: Grade) -> None:
        """Append one grade. Raises: OutputError."""
        self.write({"hash": key, **vars(grade)})


def _parsed(row: Any) -> tuple[str, Grade]:
    if not isinstance(row, dict) or set(row) != _FIELDS or row["status"] not in get_args(Status):
        raise ValueError("not the fields of a grade")
    key = row.pop("hash")
    return str(key), Grade(**row)
