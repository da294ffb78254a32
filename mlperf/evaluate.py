"""From answers to the accuracy figure: grade a results frame, total it, print and write it."""

import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backends.options import MAX_NEW_TOKENS
from data.tasks import TASKS, Answer, Grade
from data.tasks.livecodebench import TIME_LIMIT_S
from mlperf import accuracy_log
from mlperf.figures import Evaluation, Totals
from ref_dsinfer.errors import ColumnsError, GradingError, UsageError

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

COLUMNS = ("dataset", "ground_truth", "model_output", "tok_model_output_len")
ACCURACY_LOG = "mlperf_log_accuracy.json"
PROBLEMS = "livecodebench.jsonl"
_DATA = Path(__file__).resolve().parents[1] / "data"


def evaluate(
    frame: "pd.DataFrame", problems: Path | None, code_limit: float = TIME_LIMIT_S
) -> Evaluation:
    """Grade every row of a results frame.

    `problems`: LiveCodeBench's problems, JSON lines; may be None where no row needs them.
    `code_limit`: seconds a program may take for loading, and for each test.

    Errors: ColumnsError; GradingError where problems are missing; SandboxError.
    """
    import pandas as pd

    from data.samples import require_columns, row_task
    from data.sandbox import Sandbox
    from data.tasks.grading import grade_all
    from data.tasks.livecodebench import Problems

    require_columns(frame, COLUMNS)
    lengths = _lengths(frame)
    answers = [
        Answer(
            position,
            row_task(position, dataset),
            "" if _is_missing(text) else str(text),
            None if _is_missing(truth) else truth,
        )
        for position, (dataset, truth, text) in enumerate(
            zip(*(frame[name] for name in COLUMNS[:3]), strict=True)
        )
    ]
    needs_problems = any(answer.task == "livecodebench" for answer in answers)
    if needs_problems and problems is None:
        raise GradingError(f"no {PROBLEMS} was found: name it with --livecodebench-file")
    with Sandbox() as sandbox:
        grades = grade_all(
            answers,
            Problems(problems) if needs_problems and problems else None,
            sandbox,
            code_limit,
            on_done=_progress(len(answers)),
        )
    truncated = lengths >= MAX_NEW_TOKENS
    if "finish" in frame.columns:
        truncated |= (frame["finish"] == "length").to_numpy()
    graded = frame.assign(
        extracted_answer=pd.Series([g.extracted for g in grades], frame.index, dtype=object),
        prompt_accuracy=[100.0 if g.correct else 0.0 for g in grades],
        grading_error=pd.Series([g.error for g in grades], frame.index, dtype=object),
    )
    rows = pd.DataFrame(
        {
            "task": [answer.task for answer in answers],
            "right": graded["prompt_accuracy"].to_numpy(),
            "tokens": lengths.to_numpy(),
            "no_answer": [grade.extracted is None for grade in grades],
            "truncated": truncated.to_numpy(),
            "error": [grade.error is not None for grade in grades],
        }
    )
    present = [task for task in TASKS if (rows["task"] == task).any()]
    tasks = [_totals(task, rows[rows["task"] == task]) for task in present]
    return Evaluation(graded, tasks, _totals("all", rows))


def read_results(input_file: Path, dataset_file: Path | None, model: str | None) -> "pd.DataFrame":
    """The results frame in a pickle, parquet or JSON-lines file, or made from LoadGen's log.

    A log (.json) holds token ids alone: `dataset_file` has the rows they answer, `model` is the
    directory with the tokenizer.

    Errors: UsageError where a log comes without either; InputFileError, EmptyDataError,
    GradingError, ModelError, ColumnsError.
    """
    from data.samples import read_frame

    if input_file.suffix.lower() != ".json":
        return read_frame(input_file)
    if dataset_file is None:
        raise UsageError(f"{input_file} holds token ids alone: add --dataset-file")
    if not model:
        raise UsageError(f"{input_file} holds token ids alone: add --model or set MLPERF_MODEL")
    from data.prompts import Prompts
    from data.results import answer_columns, answer_rows

    dataset = read_frame(dataset_file)
    answers = accuracy_log.read(input_file, len(dataset))
    if len(answers) < len(dataset):
        log.warning("%s answers %d of %d samples", input_file, len(answers), len(dataset))
    prompts = Prompts(model)
    ids = [accuracy_log.without_stop(answer, prompts.stop_ids) for _, answer in answers]
    indices = [index for index, _ in answers]
    # how an answer ended is not in the log
    dataset = dataset.drop(columns="finish", errors="ignore")
    return answer_rows(dataset, indices, answer_columns(ids, prompts))


def find_problems(given: Path | None, beside: Sequence[Path]) -> Path | None:
    """The file of LiveCodeBench's problems: the one given, or the first where they usually lie.

    Errors: GradingError where the one given is not there.
    """
    if given is not None:
        if not given.is_file():
            raise GradingError(f"--livecodebench-file: no such file: {given}")
        return given
    candidates = [path.parent / PROBLEMS for path in beside] + [_DATA / PROBLEMS]
    return next((path for path in candidates if path.is_file()), None)


def report(evaluation: Evaluation, output: Path, source: Path | None) -> None:
    """Print the figures, write the graded frame to `output` (.pkl and .parquet) and accuracy.txt.

    `source`: LoadGen's accuracy log of the same run, whose hash accuracy.txt must hold.

    Errors: OutputError.
    """
    from data.results import write_frame, write_whole

    lines = [evaluation.result_line]
    if source is not None:
        lines.append(f"hash={accuracy_log.sha256(source)}")
    text = "\n".join(lines) + "\n"
    paths = write_frame(evaluation.frame, output)
    accuracy_txt = output.parent / "accuracy.txt"
    write_whole(accuracy_txt, lambda path: path.write_text(text, encoding="utf-8"))
    if evaluation.total.errors:
        log.warning(
            "%d rows could not be judged and count as wrong: see grading_error in %s",
            *(evaluation.total.errors, paths[0]),
        )
    for path in (*paths, accuracy_txt):
        log.info("wrote %s", path)
    print(evaluation.result_line)
    print(evaluation.table())
    print(evaluation.verdict)


def evaluate_and_report(
    frame: "pd.DataFrame",
    source_path: Path,
    problems: Path | None,
    out_dir: Path,
    code_limit: float = TIME_LIMIT_S,
) -> Evaluation:
    """Grade the answers of an accuracy run in `out_dir`, where LoadGen's log lies; then `report`.

    `source_path` is the run's data set, beside which `problems` are looked for where None is given.
    Writes results_evaluated.pkl, its parquet twin and accuracy.txt.
    """
    near = [source_path, out_dir / ACCURACY_LOG]
    evaluation = evaluate(frame, find_problems(problems, near), code_limit)
    source = out_dir / ACCURACY_LOG
    report(evaluation, out_dir / "results_evaluated.pkl", source if source.is_file() else None)
    return evaluation


def evaluate_file(
    input_file: Path,
    dataset_file: Path | None,
    model: str | None,
    problems: Path | None,
    output_file: Path | None,
    code_limit: float,
) -> Evaluation:
    """Grade a file, see `read_results`; then `report`.

    By default `<input>_evaluated.pkl` is written beside the input.
    """
    from data.results import check_writable, twins

    if not 0 < code_limit < float("inf"):
        raise UsageError(f"--time-limit must be a number of seconds above 0, not {code_limit}")
    output = output_file or input_file.with_name(f"{input_file.stem}_evaluated.pkl")
    frame = read_results(input_file, dataset_file, model)
    for path in twins(output):
        check_writable(path)
    near = [path for path in (dataset_file, input_file) if path is not None]
    evaluation = evaluate(frame, find_problems(problems, near), code_limit)
    report(evaluation, output, input_file if input_file.suffix.lower() == ".json" else None)
    return evaluation


def _lengths(frame: "pd.DataFrame") -> "pd.Series":
    """Errors: ColumnsError where a length is no number of tokens."""
    import pandas as pd

    lengths = pd.to_numeric(frame["tok_model_output_len"], errors="coerce")
    bad = ~(lengths >= 0)
    if bad.any():
        row = int(bad.to_numpy().argmax())
        value = frame["tok_model_output_len"].iloc[row]
        raise ColumnsError(f"row {row}: tok_model_output_len is {value!r}, not a number of tokens")
    return lengths


def _is_missing(value: Any) -> bool:
    import pandas as pd

    return bool(pd.api.types.is_scalar(value) and pd.isna(value))


def _totals(task: str, rows: "pd.DataFrame") -> Totals:
    return Totals(
        task,
        len(rows),
        float(rows["right"].mean()),
        float(rows["tokens"].mean()),
        int(rows["no_answer"].sum()),
        int(rows["truncated"].sum()),
        int(rows["error"].sum()),
    )


def _progress(total: int) -> Callable[[Grade], None]:
    """A bar on a terminal, a line a tenth of the way elsewhere."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        bar = tqdm(total=total, unit="row", desc="grading")

        def advance(grade: Grade) -> None:
            bar.update()
            if bar.n == total:
                bar.close()

        return advance
    done = 0

    def say(grade: Grade) -> None:
        nonlocal done
        done += 1
        if done * 10 // total > (done - 1) * 10 // total:
            log.info("graded %d of %d rows", done, total)

    return say
