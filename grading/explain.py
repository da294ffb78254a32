"""Explain how one row is graded."""

from pathlib import Path
from typing import TYPE_CHECKING

from data import schema
from data.problems import Problems
from data.samples import row_task
from errors import UsageError
from grading.evaluate import COLUMNS, FrameAnswers
from grading.pool import grade_all
from grading.sandbox.sandbox import Sandbox
from grading.tasks.table import SHOWN, TASKS, Context, Rules
from terminal import one_line, quoted

if TYPE_CHECKING:
    import pandas as pd


def explain(
    frame: "pd.DataFrame", row: int, problems: Path | None, rules: Rules, sandbox: Sandbox
) -> str:
    """The steps that decide the grade of row `row` of a results frame, as lines of text.

    Raises: UsageError if there is no such row; ColumnsError.
    """
    schema.require(frame, COLUMNS)
    if not 0 <= row < len(frame):
        raise UsageError(f"--explain {row}: no such row, rows are 0 to {len(frame) - 1}")
    names = frame["dataset"].iloc[row]
    tasks = [row_task(row, names)] * len(frame)
    answer = FrameAnswers(frame, tasks)[row]
    task = TASKS[answer.task]
    store = Problems(problems) if problems and task.needs_problems else None
    lines = [
        f"row {row}: {one_line(str(names))}, task {answer.task}",
        f"text: {len(answer.text)} characters, the last: {_short(answer.text[-SHOWN:])}",
        f"truth: {_short(answer.ground_truth)}",
    ]
    context = Context(store, sandbox, rules)
    (grade,) = grade_all([answer], context, workers=1)
    lines.append(f"extracted: {_short(grade.extracted)}")
    if sandbox.level and grade.extracted and answer.ground_truth:
        lines += task.explain(grade.extracted, answer, context)
    reason = one_line(f"{grade.rule}: {grade.detail}" if grade.detail else grade.rule)
    lines.append(f"{grade.status} by {reason} ({grade.seconds:.3f} s)")
    return "\n".join(lines)


def _short(value: object) -> str:
    return quoted(value, SHOWN)
