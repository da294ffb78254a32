"""From answers to the accuracy figure: grade a results frame, compute, print and write figures."""

import contextlib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark import MAX_NEW_TOKENS, ROWS
from data import schema
from data.problems import Problems
from errors import ColumnsError
from grading.grades_log import GradesLog
from grading.inputs import find_problems, no_problems
from grading.live import GradingView
from grading.metrics import Evaluation, SandboxInfo, Totals
from grading.pool import content_hash, each, grade_all, grader_version
from grading.sandbox.sandbox import Sandbox
from grading.sandbox.types import SandboxError, TimeLimit
from grading.tasks import Answer, Grade, lenient
from grading.tasks.table import MATH_LIMIT_S, MATH_LIMITS, TASKS, Context, Lease, Rules
from grading.tasks.worker import Worker
from ref_dsinfer.files import sha256, write_json, write_text
from terminal import quoted

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

COLUMNS = schema.FOR_GRADING
ACCURACY_LOG = "mlperf_log_accuracy.json"
GRADED = "_evaluated"  # at the end of a graded frame's name
_LONGEST = 1 << 31  # tokens, far above any answer
LOG_ENDING, REPORT_ENDING = "_grades.jsonl", "_report.json"


@dataclass(frozen=True)
class GradingOptions:
    """How to grade."""

    rules: Rules = field(default_factory=Rules)
    sandbox: str = "auto"  # level
    workers: int | None = None  # answers graded in parallel; None: one per core
    lenient: bool = False  # also judge with math-verify
    fresh: bool = False  # ignore the grades of earlier runs
    live: bool = False  # show a live view where standard error is a terminal


def evaluate(
    frame: "pd.DataFrame",
    problems: Path | None,
    options: GradingOptions = GradingOptions(),
    log_path: Path | None = None,
    expected: int = ROWS,
    sandbox: Sandbox | None = None,
) -> Evaluation:
    """Grade every row of a results frame, which should have `expected` rows.

    `problems`: LiveCodeBench's problems as JSON lines; None if no row needs them. `log_path`: the
    log to which every grade is written, and from which those of an earlier run are read. `sandbox`:
    an existing one, which is closed here.

    Raises: ColumnsError; GradingError if problems are missing; InputFileError, OutputError. A row
    that can't be judged raises nothing: see `Evaluation.require_all`.
    """
    from data.samples import row_task

    if options.lenient and find_spec(lenient.PACKAGE) is None:  # before hours of grading
        raise ModuleNotFoundError(name=lenient.PACKAGE)
    schema.require(frame, COLUMNS)
    lengths = _lengths(frame)
    answers = FrameAnswers(frame, [row_task(i, name) for i, name in enumerate(frame["dataset"])])
    store = None
    present = [task for task in TASKS if task in answers.tasks]
    if any(TASKS[task].needs_problems for task in present):
        if problems is None:
            raise no_problems()
        store = Problems(problems)
    with sandbox or start_sandbox(options) as started:
        for task in present:
            for module in TASKS[task].modules:
                started.prepare(module)
        grades = _grades(answers, store, started, options, log_path)
        if log.isEnabledFor(logging.DEBUG):
            for row, grade in enumerate(grades):
                log.debug("%s", _line(answers[row], grade))
        opinions = dict(_opinions(answers, started, options)) if options.lenient else None
        sandbox_info = SandboxInfo(started.level, started.reason, started.canaries)
    graded = _with_grades(frame, grades, opinions)
    rows = _rows(graded, answers.tasks, lengths)
    tasks = [_totals(task, rows[rows["task"] == task]) for task in present]
    return Evaluation(
        graded,
        tasks,
        _totals("all", rows.assign(lenient=float("nan"))),
        sandbox_info,
        expected,
        options.rules.unofficial if store else "",
    )


def start_sandbox(options: GradingOptions) -> Sandbox:
    """The sandbox for grading, which starts up in the background.

    So does the fork server for programs, which is cheap to start; others start on demand.
    """
    sandbox = Sandbox(options.sandbox)
    sandbox.prepare(TASKS["livecodebench"].modules[0])
    return sandbox


class FrameAnswers:
    """The answers in a results frame, created on access.

    Raises: ColumnsError naming the row whose answer or truth has an unsupported type.
    """

    def __init__(self, frame: "pd.DataFrame", tasks: Sequence[str]) -> None:
        from data.samples import is_missing, require_text, require_truths

        require_text(frame, ("model_output",), missing=True)
        require_truths(frame)
        self.tasks = tasks  # of each row
        self._texts = frame["model_output"].array
        self._truths = [None if is_missing(truth) else truth for truth in frame["ground_truth"]]

    def __len__(self) -> int:
        return len(self.tasks)

    def __getitem__(self, row: int, /) -> Answer:
        text = self._texts[row]
        text = text if isinstance(text, str) else ""  # missing
        return Answer(row, self.tasks[row], text, self._truths[row])


def report(
    evaluation: Evaluation,
    output: Path,
    source: Path,
    options: GradingOptions,
    problems: Path | None,
) -> None:
    """Print the figures, and write the graded frame, a report and accuracy.txt.

    `output`: the graded frame's .pkl file; a .parquet file is written next to it. `source`: the
    file that was graded; the hash of LoadGen's log is part of accuracy.txt, as MLPerf requires.

    Raises: OutputError.
    """
    from data.results import write_frame

    lines = [evaluation.result_line]
    if not evaluation.whole:
        lines.append(evaluation.verdict)
    digest = sha256(source) if source.is_file() else None
    if digest and source.suffix.lower() == ".json":
        lines.append(f"hash={digest}")
    text = "\n".join(lines) + "\n"
    figures = evaluation.as_json() | {
        "input": {"file": str(source), "sha256": digest},
        "livecodebench": {"file": str(problems) if problems else None, **asdict(options.rules)},
        "math_limit_s": MATH_LIMIT_S,
        "grader": grader_version(),
    }
    paths = write_frame(evaluation.frame, output)
    _, report_path, accuracy_path = companions(output)
    write_json(report_path, figures)
    write_text(accuracy_path, text)
    for path in (*paths, report_path, accuracy_path):
        log.info("wrote %s", path)
    print(evaluation.result_line)
    print(evaluation.table())
    print(evaluation.sandbox)
    print(evaluation.verdict)


def evaluate_and_report(
    frame: "pd.DataFrame",
    source_path: Path,
    problems: Path | None,
    out_dir: Path,
    options: GradingOptions = GradingOptions(),
    expected: int = ROWS,
) -> Evaluation:
    """Grade the answers of an accuracy run, then `report` them.

    `source_path`: the run's data set; if `problems` is None they are looked for in its directory.
    `out_dir`: the directory with LoadGen's log; results_evaluated.pkl and the other files of
    `report` are written to it.
    """
    source = out_dir / ACCURACY_LOG
    output = out_dir / f"results{GRADED}.pkl"
    problems = find_problems(problems, [source_path, source])
    evaluation = evaluate(frame, problems, options, sibling(output, LOG_ENDING), expected)
    report(evaluation, output, source, options, problems)
    return evaluation


def companions(output: Path) -> list[Path]:
    """The files written next to a graded frame: the log of grades, the report, accuracy.txt."""
    endings = (LOG_ENDING, REPORT_ENDING)
    return [*(sibling(output, ending) for ending in endings), output.parent / "accuracy.txt"]


def sibling(output: Path, ending: str) -> Path:
    """The file next to a graded frame with another ending: x_report.json for x_evaluated.pkl."""
    from data.results import result_paths

    stem = result_paths(output)[0].stem.removesuffix(GRADED)
    return output.with_name(stem + ending)


def _grades(
    answers: FrameAnswers,
    problems: Problems | None,
    sandbox: Sandbox,
    options: GradingOptions,
    log_path: Path | None,
) -> list[Grade]:
    """The grades of all rows, in order. Programs are graded first, since they take longest."""
    context = Context(problems, sandbox, options.rules)
    keys = [content_hash(answers[row], context) for row in range(len(answers))]
    grades: dict[int, Grade] = {}
    with contextlib.ExitStack() as stack:
        grades_log = stack.enter_context(GradesLog(log_path, options.fresh)) if log_path else None
        for row, key in enumerate(keys):
            if grades_log and key in grades_log.earlier:
                grades[row] = replace(grades_log.earlier[key], sample_index=row)
        if grades:
            log.info(
                "%d of %d rows were graded by an earlier run (use --fresh to grade them again)",
                *(len(grades), len(keys)),
            )
        pending = sorted(
            (row for row in range(len(keys)) if row not in grades),
            key=lambda row: not TASKS[answers.tasks[row]].needs_problems,
        )
        new_grades = grade_all(answers, context, options.workers, pending)
        stack.enter_context(contextlib.closing(new_grades))
        view = stack.enter_context(GradingView(options.live, answers.tasks, grades))
        for grade in new_grades:
            grades[grade.sample_index] = grade
            view.add(grade)
            if grades_log:
                grades_log.add(keys[grade.sample_index], grade)
    return [grades[row] for row in range(len(keys))]


def _line(answer: Answer, grade: Grade) -> str:
    """A row's grade, for the log."""
    return (
        f"row {answer.sample_index}: {answer.task}: {grade.status}, extracted"
        f" {quoted(grade.extracted)}, truth {quoted(answer.ground_truth)}, by {grade.rule}"
    )


def _opinions(
    answers: FrameAnswers, sandbox: Sandbox, options: GradingOptions
) -> Iterable[tuple[int, bool | None]]:
    """Rows with math-verify's opinion on them, None if it has none."""
    if sandbox.level is None:
        return []

    def ask(row: int, lease: Lease) -> tuple[int, bool | None]:
        answer = answers[row]
        message = {"text": answer.text[-lenient.TAIL :], "truth": str(answer.ground_truth)}
        try:
            with lease.worker() as worker:
                return row, bool(worker.ask(message, MATH_LIMIT_S)["right"])
        except (TimeLimit, SandboxError):
            return row, None

    rows = [row for row, task in enumerate(answers.tasks) if TASKS[task].lenient]
    module = lenient.__name__
    return each(ask, rows, sandbox, lambda: Worker(sandbox, module, MATH_LIMITS), options.workers)


def _with_grades(
    frame: "pd.DataFrame", grades: Sequence[Grade], opinions: dict[int, bool | None] | None
) -> "pd.DataFrame":
    import pandas as pd

    def column(values: Iterable[Any]) -> "pd.Series":
        return pd.Series(list(values), frame.index, dtype=object)

    graded = frame.assign(
        extracted_answer=column(grade.extracted for grade in grades),
        prompt_accuracy=[100.0 if grade.correct else 0.0 for grade in grades],
        grading_status=column(grade.status for grade in grades),
        grading_rule=column(grade.rule for grade in grades),
        grading_detail=column(grade.detail for grade in grades),
    )
    if opinions is None:
        return graded.drop(columns="lenient_accuracy", errors="ignore")  # by an earlier run
    right = column(opinions.get(row) for row in range(len(grades)))
    return graded.assign(lenient_accuracy=100.0 * right.astype(float))


def _rows(graded: "pd.DataFrame", tasks: Sequence[str], lengths: "pd.Series") -> "pd.DataFrame":
    """The values that `_totals` sums up, one row per answer."""
    import pandas as pd

    truncated = lengths >= MAX_NEW_TOKENS
    if "finish" in graded.columns:
        truncated |= (graded["finish"] == "length").to_numpy()
    return pd.DataFrame(
        {
            "task": list(tasks),
            "status": graded["grading_status"].to_numpy(),
            "tokens": lengths.to_numpy(),
            "truncated": truncated.to_numpy(),
            "lenient": graded["lenient_accuracy"].to_numpy(float)
            if "lenient_accuracy" in graded.columns
            else float("nan"),
        }
    )


def _lengths(frame: "pd.DataFrame") -> "pd.Series":
    """The answers' lengths in tokens. Raises: ColumnsError if one is not a number of tokens."""
    import pandas as pd

    lengths = []
    for row, value in enumerate(frame["tok_model_output_len"]):
        if (length := _length(value)) is None:
            raise ColumnsError(
                f"row {row}: tok_model_output_len is {quoted(value)}, not a number of tokens"
            )
        lengths.append(length)
    return pd.Series(lengths, frame.index, dtype=float)


def _length(value: Any) -> float | None:
    # compared before conversion: a decimal may have a billion digits
    try:
        number = float(value) if isinstance(value, str) else value
        return float(number) if 0 <= number < _LONGEST else None
    except (TypeError, ValueError, ArithmeticError):
        return None


def _totals(task: str, rows: "pd.DataFrame") -> Totals:
    counts = rows["status"].value_counts()
    opinion = float(rows["lenient"].mean())
    return Totals(
        task,
        len(rows),
        int(counts.get("ok", 0)),
        float(rows["tokens"].mean()),
        int(counts.get("no_answer", 0)),
        int(rows["truncated"].sum()),
        int(counts.get("timeout", 0)),
        int(counts.get("sandbox_error", 0) + counts.get("not_graded", 0)),
        None if opinion != opinion else opinion,
    )
