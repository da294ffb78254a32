"""The steps that decide one row."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from data.samples import require_columns, row_task
from data.sandbox import Ended, Limits, Sandbox, SandboxError
from data.tasks import Answer, Grade, livecodebench
from data.tasks.grading import MathWorker, grade_all
from data.tasks.livecodebench import Problems
from mlperf.evaluate import COLUMNS, FrameAnswers, Grading
from ref_dsinfer.errors import GradingError, UsageError

if TYPE_CHECKING:
    import pandas as pd

_SHOWN = 500  # characters of a text


def explain(frame: "pd.DataFrame", row: int, problems: Path | None, grading: Grading) -> str:
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
        f"row {row}: {names}, task {answer.task}",
        f"text: {len(answer.text)} characters, the last: {_short(answer.text[-_SHOWN:])}",
        f"truth: {_short(answer.ground_truth)}",
    ]
    with Sandbox(grading.sandbox) as sandbox:
        (grade,) = grade_all([answer], store, sandbox, grading.rules, workers=1)
        lines.append(f"extracted: {_short(grade.extracted)}")
        if sandbox.level and grade.extracted is not None:
            if answer.task == "math500":
                lines += _forms(grade, answer, sandbox)
            if store and answer.task == "livecodebench":
                lines += _failing_test(grade, answer, store, sandbox, grading)
    detail = f": {grade.detail}" if grade.detail else ""
    lines.append(f"{grade.status} by {grade.rule}{detail} ({grade.seconds:.3f} s)")
    return "\n".join(lines)


def _forms(grade: Grade, answer: Answer, sandbox: Sandbox) -> list[str]:
    worker = MathWorker(sandbox)
    try:
        forms = [worker.forms(str(text)) for text in (grade.extracted, answer.ground_truth)]
    except (Ended, SandboxError) as error:
        return [f"normal forms: none ({error})"]
    finally:
        worker.close()
    given, truth = forms
    return [f"as {whose} writes them: {given[whose]!r} and {truth[whose]!r}" for whose in given]


def _failing_test(
    grade: Grade, answer: Answer, problems: Problems, sandbox: Sandbox, grading: Grading
) -> list[str]:
    """The test that a program has failed, and what it made of it."""
    found = re.search(r"test (\d+) of \d+: ", grade.rule)
    if not found:
        return []
    try:
        problem = problems.read(str(answer.ground_truth))
    except GradingError:
        return []  # as the grade says
    test = problem.tests[int(found[1]) - 1]
    output = _output(str(grade.extracted), problem, int(found[1]), sandbox, grading)
    return [
        f"test {found[1]}, {'standard input' if problem.function is None else problem.function}:",
        f"  input: {_short(test.input)}",
        f"  expected: {_short(test.output)}",
        f"  given: {_short(output)}",
    ]


def _output(
    code: str, problem: livecodebench.Problem, number: int, sandbox: Sandbox, grading: Grading
) -> str:
    """What a program makes of test `number`, from 1, after those before it."""
    limit = grading.rules.code_limit
    with sandbox.start("data.tasks.program", Limits()) as process:
        try:
            message = {"code": code, "function": problem.function, "mode": grading.rules.mode}
            reply = process.ask(message, limit)
            for test in problem.tests[:number]:
                process.give(test.input.encode(errors="surrogatepass"))
                reply = process.ask({}, limit)
        except Ended as error:
            return f"nothing: {error}"
        if reply.get("ok") is True and problem.function is not None:
            return str(reply.get("value"))
        printed = process.printed().decode(errors="replace")
        return printed if reply.get("ok") is True else f"{printed} ({reply.get('error')})"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN // 2]} … {text[-_SHOWN // 2 :]}"
