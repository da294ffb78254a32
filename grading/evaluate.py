"""From answers to the accuracy figure: grade a results frame, total it, print and write it."""

import contextlib
import logging
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark import MAX_NEW_TOKENS, ROWS
from errors import ColumnsError, GradingError
from grading import accuracy_log
from grading.grades_log import GradesLog
from grading.inputs import PROBLEMS, find_problems
from grading.metrics import Evaluation, SandboxInfo, Totals
from grading.pool import content_hash, each, grade_all, grader_version
from grading.sandbox.sandbox import Sandbox
from grading.sandbox.types import SandboxError, TimeLimit
from grading.tasks import Answer, Grade, lenient
from grading.tasks.livecodebench import Problems
from grading.tasks.table import MATH_LIMIT_S, MATH_LIMITS, TASKS, Context, Rules, Turn
from grading.tasks.worker import Worker
from ref_dsinfer.files import write_json, write_text
from terminal import quoted

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

COLUMNS = ("dataset", "ground_truth", "model_output", "tok_model_output_len")
ACCURACY_LOG = "mlperf_log_accuracy.json"
# What is written beside a graded frame, whose own name ends in this
GRADED = "_evaluated"
_LONGEST = 1 << 31  # tokens, far above any answer
LOG_ENDING, REPORT_ENDING = "_grades.jsonl", "_report.json"


@dataclass(frozen=True)
class Grading:
    """How to grade."""

    rules: Rules = field(default_factory=Rules)
    sandbox: str = "auto"  # level
    workers: int | None = None  # answers graded at once; None: one a core
    lenient: bool = False  # ask math-verify too
    fresh: bool = False  # what the log has is not kept


def evaluate(
    frame: "pd.DataFrame",
    problems: Path | None,
    grading: Grading = Grading(),
    log_path: Path | None = None,
    expected: int = ROWS,
    sandbox: Sandbox | None = None,
) -> Evaluation:
    """Grade every row of a results frame, which should have `expected` rows.

    `problems`: LiveCodeBench's problems, JSON lines; may be None where no row needs them.
    `log_path`: where each grade is kept as it comes, and what an earlier run graded is read from.
    `sandbox`: one that has been made already, which is closed here.

    Errors: ColumnsError; GradingError where problems are missing; UsageError, InputFileError,
    OutputError. A row that can't be judged is none: see `Evaluation.require_all`.
    """
    from data.samples import require_columns, row_task

    if grading.lenient and find_spec(lenient.PACKAGE) is None:  # before hours of grading
        raise ModuleNotFoundError(name=lenient.PACKAGE)
    require_columns(frame, COLUMNS)
    lengths = _lengths(frame)
    answers = FrameAnswers(frame, [row_task(i, name) for i, name in enumerate(frame["dataset"])])
    store = None
    present = [task for task in TASKS if task in answers.tasks]
    if any(TASKS[task].needs_problems for task in present):
        if problems is None:
            raise GradingError(f"no {PROBLEMS} was found: name it with --livecodebench-file")
        store = Problems(problems)
    with sandbox or start_sandbox(grading) as fenced:
        for task in present:
            for module in TASKS[task].modules:
                fenced.prepare(module)
        grades = _grades(answers, store, fenced, grading, log_path)
        opinions = dict(_opinions(answers, fenced, grading)) if grading.lenient else None
        sandbox_info = SandboxInfo(fenced.level, fenced.reason, fenced.canaries)
    graded = _with_grades(frame, grades, opinions)
    rows = _rows(graded, answers.tasks, lengths)
    tasks = [_totals(task, rows[rows["task"] == task]) for task in present]
    return Evaluation(
        graded,
        tasks,
        _totals("all", rows.assign(lenient=float("nan"))),
        sandbox_info,
        expected,
        grading.rules.unofficial if store else "",
    )


def start_sandbox(grading: Grading) -> Sandbox:
    """The sandbox to grade in. It takes a while, which need not be waited for.

    What tests programs is made ready beside it, since that costs little; the rest on demand.
    """
    sandbox = Sandbox(grading.sandbox)
    sandbox.prepare(TASKS["livecodebench"].modules[0])
    return sandbox


class FrameAnswers:
    """The answers in a results frame, each made when it is asked for.

    Errors: ColumnsError naming the row whose answer or truth is not what it can be.
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
        said = text if isinstance(text, str) else ""  # missing
        return Answer(row, self.tasks[row], said, self._truths[row])


def report(
    evaluation: Evaluation, output: Path, source: Path, grading: Grading, problems: Path | None
) -> None:
    """Print the figures, and write the graded frame, a report and accuracy.txt.

    `output` is the graded frame's file (.pkl, and .parquet beside it). `source` is what was graded;
    where it is LoadGen's log, accuracy.txt holds its hash, as it must.

    Errors: OutputError.
    """
    from data.results import write_frame

    lines = [evaluation.result_line]
    if not evaluation.whole:
        lines.append(evaluation.verdict)
    digest = accuracy_log.sha256(source) if source.is_file() else None
    if digest and source.suffix.lower() == ".json":
        lines.append(f"hash={digest}")
    text = "\n".join(lines) + "\n"
    told = evaluation.as_json() | {
        "input": {"file": str(source), "sha256": digest},
        "livecodebench": {"file": str(problems) if problems else None, **asdict(grading.rules)},
        "math_limit_s": MATH_LIMIT_S,
        "grader": grader_version(),
    }
    paths = write_frame(evaluation.frame, output)
    _, report_path, figure_path = companions(output)
    write_json(report_path, told)
    write_text(figure_path, text)
    for path in (*paths, report_path, figure_path):
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
    grading: Grading = Grading(),
    expected: int = ROWS,
) -> Evaluation:
    """Grade the answers of an accuracy run in `out_dir`, where LoadGen's log lies; then `report`.

    `source_path` is the run's data set, beside which `problems` are looked for where None is given.
    Writes results_evaluated.pkl and what `report` writes beside it.
    """
    source = out_dir / ACCURACY_LOG
    output = out_dir / f"results{GRADED}.pkl"
    problems = find_problems(problems, [source_path, source])
    evaluation = evaluate(frame, problems, grading, beside(output, LOG_ENDING), expected)
    report(evaluation, output, source, grading, problems)
    return evaluation


def companions(output: Path) -> list[Path]:
    """What is written beside a graded frame: the log of grades, the report, accuracy.txt."""
    endings = (LOG_ENDING, REPORT_ENDING)
    return [*(beside(output, ending) for ending in endings), output.parent / "accuracy.txt"]


def beside(output: Path, ending: str) -> Path:
    """The file that stands by a graded frame's: x_report.json by x_evaluated.pkl."""
    from data.results import twins

    stem = twins(output)[0].stem.removesuffix(GRADED)
    return output.with_name(stem + ending)


def _grades(
    answers: FrameAnswers,
    problems: Problems | None,
    sandbox: Sandbox,
    grading: Grading,
    log_path: Path | None,
) -> list[Grade]:
    """The grade of every row; programs first, since they take longest."""
    context = Context(problems, sandbox, grading.rules)
    keys = [content_hash(answers[row], context) for row in range(len(answers))]
    grades: dict[int, Grade] = {}
    with contextlib.ExitStack() as stack:
        kept_log = stack.enter_context(GradesLog(log_path, grading.fresh)) if log_path else None
        for row, key in enumerate(keys):
            if kept_log and key in kept_log.earlier:
                grades[row] = replace(kept_log.earlier[key], sample_index=row)
        if grades:
            log.info("%d of %d rows are graded already (--fresh: anew)", len(grades), len(keys))
        left = sorted(
            (row for row in range(len(keys)) if row not in grades),
            key=lambda row: not TASKS[answers.tasks[row]].needs_problems,
        )
        found = grade_all(answers, context, grading.workers, left)
        for grade in _shown(found, [answers.tasks[row] for row in left], answers.tasks):
            grades[grade.sample_index] = grade
            if kept_log:
                kept_log.add(keys[grade.sample_index], grade)
    return [grades[row] for row in range(len(keys))]


def _shown(
    grades: Generator[Grade, None, None], left: Sequence[str], tasks: Sequence[str]
) -> Iterator[Grade]:
    """The grades as they come, counted task by task. `left`: the task of each that will come."""
    from data.progress import Progress

    with contextlib.ExitStack() as stack:
        bars = {
            task: stack.enter_context(Progress(left.count(task), task, "row"))
            for task in TASKS
            if task in left
        }
        stack.enter_context(contextlib.closing(grades))
        for grade in grades:
            yield grade
            bars[tasks[grade.sample_index]].add()


def _opinions(
    answers: FrameAnswers, sandbox: Sandbox, grading: Grading
) -> Iterable[tuple[int, bool | None]]:
    """Row and math-verify's opinion of it; None where it has none."""
    if sandbox.level is None:
        return []

    def ask(row: int, turn: Turn) -> tuple[int, bool | None]:
        answer = answers[row]
        message = {"text": answer.text[-lenient.TAIL :], "truth": str(answer.ground_truth)}
        try:
            with turn.taken() as worker:
                return row, bool(worker.ask(message, MATH_LIMIT_S)["right"])
        except (TimeLimit, SandboxError):
            return row, None

    rows = [row for row, task in enumerate(answers.tasks) if TASKS[task].lenient]
    module = lenient.__name__
    return each(ask, rows, sandbox, lambda: Worker(sandbox, module, MATH_LIMITS), grading.workers)


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
        return graded.drop(columns="lenient_accuracy", errors="ignore")  # of an earlier grading
    told = column(opinions.get(row) for row in range(len(grades)))
    return graded.assign(lenient_accuracy=100.0 * told.astype(float))


def _rows(graded: "pd.DataFrame", tasks: Sequence[str], lengths: "pd.Series") -> "pd.DataFrame":
    """What is totalled, a row each."""
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
    """Errors: ColumnsError where a length is no number of tokens."""
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
    # compared before it is converted: a decimal may stand for a billion digits
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
