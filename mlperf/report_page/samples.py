"""The rows of a run's answers: for the tables of a report, and for its sample browser."""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from data.journal import read_inputs, read_journal
from data.samples import is_missing, read_frame, task_of
from data.workload import model_identity
from errors import InputFileError
from grading.evaluate import GRADED
from mlperf.page.blocks import block
from mlperf.report_page.latencies import with_latencies
from mlperf.result_folder import ResultFolder
from mlperf.run import JOURNAL, RESULTS
from ref_dsinfer.files import combined_sha256
from terminal import CONTROL

if TYPE_CHECKING:
    import pandas as pd

    from data.timeline import Timeline

CHUNK = 200_000  # characters of text that are compressed together, and read together
# Of each row in the index, which the browser reads at once; texts are read when they are needed.
INDEX = (
    *("sample", "task", "dataset", "grade", "status", "rule", "extracted", "expected", "tokens"),
    *("finish", "endpoint", "ttft_ms", "tpot_ms", "latency_s"),
)
TEXTS = ("question", "output", "detail")
LONG = ("question", "output")  # they stay as they were read: a copy would double the memory
# The columns of a file of answers that these are read from.
_NUMBERS = {"sample": "sample_index", "query": "query_id", "tokens": "tok_model_output_len"}
_TEXTS = {
    "dataset": "dataset",
    "status": "grading_status",
    "rule": "grading_rule",
    "detail": "grading_detail",
    "extracted": "extracted_answer",
    "expected": "ground_truth",
    "finish": "finish",
    "question": "question",
    "output": "model_output",
}
_ACCURACY = "prompt_accuracy"


def answers_path(folder: ResultFolder) -> Path | None:
    """The file with a finished run's answers, graded if there is one; None if there is none."""
    if not folder.finished:
        return None
    own = [folder.path / f"{RESULTS}{ending}.parquet" for ending in (GRADED, "")]
    written = (folder.record or {}).get("answers")
    paths = [*own, *([Path(written)] if written else [])]
    return next((path for path in paths if path.exists()), None)


def read_samples(path: Path, timeline: "Timeline | None") -> "pd.DataFrame":
    """The samples of a file of answers, in its order.

    Raises: InputFileError, ColumnsError, EmptyDataError.
    """
    # without token ids, which would take most of the memory
    return _samples(read_frame(path, {*_TEXTS.values(), *_NUMBERS.values(), _ACCURACY}), timeline)


def journalled(folder: ResultFolder) -> "pd.DataFrame | None":
    """The samples that a run without results has finished, from its journal; None if there are
    none, or if it is not known where their questions are.

    Raises: InputFileError, ColumnsError, EmptyDataError, ModelError if a file can't be read, or if
    data set or model have changed.
    """
    from data.prompts import Prompts
    from data.results import results_frame

    journal, state = folder.path / JOURNAL, folder.state or {}
    if not journal.exists() or not (state.get("data_set") and state.get("model")):
        return None
    if journal.stat().st_mtime < datetime.fromisoformat(state["started"]).timestamp():
        return None  # it is an earlier run's
    answers = read_journal(journal)
    if not answers:
        return None
    inputs, source, model = read_inputs(journal), Path(state["data_set"]), Path(state["model"])
    rows = read_frame(source).iloc[state.get("skipped_rows") or 0 :]
    for path, name, value in (
        (source, "the data set", combined_sha256([source])),
        (model, "the model", model_identity(model)),
    ):
        if inputs.get(name) != value:
            raise InputFileError(f"{path}: has changed since {journal} was written")
    return _samples(results_frame(rows, answers, Prompts(model), ""), folder.timeline)


def _samples(frame: "pd.DataFrame", timeline: "Timeline | None") -> "pd.DataFrame":
    """A row an answer, in the frame's order, with the columns of INDEX and TEXTS.

    A grade is right, wrong, not judged, or None if the answers are not graded. Times that are not
    known are NaN, other values None, but for LONG texts, which are as in the frame.
    """
    import pandas as pd

    def column(name: str) -> "pd.Series":
        if name not in frame.columns:
            return pd.Series([None] * len(frame), dtype=object)
        return frame[name].astype(object)

    texts = {
        name: [_text(value) for value in column(source)]
        for name, source in _TEXTS.items()
        if name not in LONG
    }
    grades = zip(texts["status"], column(_ACCURACY), strict=True)
    samples = pd.DataFrame(
        {
            **{name: column(source) for name, source in _NUMBERS.items()},
            **texts,
            "task": [_task(name) for name in texts["dataset"]],
            "grade": [_grade(status, accuracy) for status, accuracy in grades],
        },
        dtype=object,  # text may hold lone surrogates, which pandas' own type can't
    )
    for name in LONG:
        samples[name] = frame.get(_TEXTS[name])
    return with_latencies(samples, timeline)


def blocks(samples: "pd.DataFrame") -> Iterator[tuple[str, Markup]]:
    """The blocks of the sample browser: the index first, then the texts in chunks of whole rows."""
    starts, size = [0], 0
    for row, texts in enumerate(zip(*(samples[name] for name in TEXTS), strict=True)):
        length = sum(len(_text(text) or "") for text in texts)
        if size and size + length > CHUNK:
            starts.append(row)
            size = 0
        size += length
    index = {
        "controls": CONTROL.pattern,
        "starts": starts,
        "rows": len(samples),
        "columns": {name: [_plain(value) for value in samples[name]] for name in INDEX},
    }
    yield "sample-index", block(index)
    for number, (start, end) in enumerate(zip(starts, [*starts[1:], len(samples)], strict=True)):
        columns = [map(_text, samples[name].iloc[start:end]) for name in TEXTS]
        yield f"sample-texts-{number}", block(list(zip(*columns, strict=True)))


def _task(name: str | None) -> str:
    try:
        return task_of(name)
    except ValueError:
        return str(name)


def _grade(status: str | None, accuracy: Any) -> str | None:
    if status in ("sandbox_error", "not_graded"):
        return "not judged"
    if is_missing(accuracy):
        return None
    return "right" if accuracy > 0 else "wrong"


def _text(value: Any) -> str | None:
    return None if is_missing(value) else str(value)


def _plain(value: Any) -> Any:
    """A cell as JSON has it."""
    if is_missing(value):
        return None
    if isinstance(value, str):
        return value
    number = float(value)
    return int(number) if number.is_integer() else float(f"{number:.6g}")
