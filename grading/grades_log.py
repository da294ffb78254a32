"""The log of grades: rows that were graded before a run was killed are not graded again.

A grade is stored under the hash of everything it depends on (`grading.pool.content_hash`), so a log
can be used for another file of answers, and grades by other rules are ignored.
"""

from pathlib import Path
from typing import Any, get_args

from data.jsonl import Lines, read_lines
from grading.tasks import Grade, Status

_FIELDS = {"hash", "extracted", "status", "rule", "seconds", "detail", "sample_index"}


class GradesLog(Lines):
    """Grades as JSON lines, each written as soon as it is known.

    `earlier`: the grades of earlier runs by their hash, except rows that could not be judged, which
    are tried again. `fresh`: start a new log, without earlier grades.

    Raises: OutputError; InputFileError if the file holds something else.
    """

    def __init__(self, path: Path, fresh: bool = False) -> None:
        self.earlier: dict[str, Grade] = {}
        if not fresh and path.exists():
            grades = read_lines(path, _parse, "a grade: use --fresh to start a new log")
            self.earlier = {key: grade for key, grade in grades if grade.judged}
        super().__init__(path, keep=not fresh)

    def add(self, key: str, grade: Grade) -> None:
        """Append one grade. Raises: OutputError."""
        self.write({"hash": key, **vars(grade)})


def _parse(row: Any) -> tuple[str, Grade]:
    if not isinstance(row, dict) or set(row) != _FIELDS or row["status"] not in get_args(Status):
        raise ValueError("not the fields of a grade")
    key = row.pop("hash")
    return str(key), Grade(**row)
