"""The steps that decide one row."""

from pathlib import Path
from typing import TYPE_CHECKING

from data.samples import require_columns, row_task
from errors import GradingError, UsageError
from grading.evaluate import COLUMNS, FrameAnswers
from grading.pool import MathWorker, Rules, grade_all
from grading.sandbox.sandbox import Sandbox
from grading.sandbox.types import Ended, SandboxError
from grading.tasks import Answer, Grade
from grading.tasks.livecodebench import Case, Problems, passes
from terminal import one_line, quoted

if TYPE_CHECKING:
    import pandas as pd

_SHOWN = 500  # characters of a text


def explain(
    frame: "pd.DataFrame", row: int, problems: Path | None, rules: Rules, sandbox: Sandbox
) -> str:
    """How row `row` of a results frame is graded, in lines for people.

    Errors: UsageError where there is no such row; ColumnsError.
    """
    require_columns(frame, COLUMNS)
    if not 0 <= row < len(frame):
        raise UsageError(f"--explain: there is no row {row}, rows are 0 to {len(frame) - 1}")
    names = frame["dataset"].iloc[row]
    tasks = [row_task(row, names)] * len(frame)
    answer = FrameAnswers(frame, tasks)[row]
    store = Problems(problems) if problems and answer.task == "livecodebench" else None
    lines = [
        f"row {row}: {one_line(str(names))}, task {answer.task}",
        f"text: {len(answer.text)} characters, the last: {_short(answer.text[-_SHOWN:])}",
        f"truth: {_short(answer.ground_truth)}",
    ]
    (grade,) = grade_all([answer], store, sandbox, rules, workers=1)
    lines.append(f"extracted: {_short(grade.extracted)}")
    if sandbox.level and grade.extracted and answer.ground_truth:
        if answer.task == "math500":
            lines += _forms(grade, answer, sandbox)
        if store and str(answer.ground_truth) in store:
            lines += _failing_test(grade, answer, store, sandbox, rules)
    reason = one_line(f"{grade.rule}: {grade.detail}" if grade.detail else grade.rule)
    lines.append(f"{grade.status} by {reason} ({grade.seconds:.3f} s)")
    return "\n".join(lines)


def _forms(grade: Grade, answer: Answer, sandbox: Sandbox) -> list[str]:
    worker = MathWorker(sandbox)
    try:
        forms = [worker.forms(str(text)) for text in (grade.extracted, answer.ground_truth)]
    except (Ended, SandboxError) as error:
        return [f"normal forms: none ({one_line(str(error))})"]
    finally:
        worker.close()
    given, truth = forms
    return [
        f"as {whose} writes them: {_short(given[whose])} and {_short(truth[whose])}"
        for whose in given
    ]


def _failing_test(
    grade: Grade, answer: Answer, problems: Problems, sandbox: Sandbox, rules: Rules
) -> list[str]:
    """The test that a program fails, if there is one, and what it makes of it."""
    lines: list[str] = []

    def tell(test: Case, given: str | None) -> None:
        told = {"input": _short(test.input), "expected": _short(test.output), "given": given}
        lines.extend(f"{name} of the failing test: {text}" for name, text in told.items())

    try:
        problem = problems.read(str(answer.ground_truth))
        code = str(grade.extracted)
        passes(code, problem, sandbox, rules.code_limit, rules.mode, tell)
    except GradingError as error:
        return [f"no test can be run: {one_line(str(error))}"]
    return lines


def _short(value: object) -> str:
    return quoted(value, _SHOWN)
