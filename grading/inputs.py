"""What is graded, read and held against what should be there."""

import logging
from collections import Counter
from collections.abc import Sequence
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING

from benchmark import ROWS
from errors import GradingError, UsageError
from grading import accuracy_log
from terminal import quoted

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

PROBLEMS = "livecodebench.jsonl"
_DATA = Path(__file__).resolve().parents[1] / "data"
_SAME = ("dataset", "ground_truth", "question")  # columns that results share with their data set
_LONG = 200  # characters of an answer that no other repeats by chance


def read_results(
    input_file: Path,
    dataset_file: Path | None,
    tokenizer: str | None,
    expected: int | None = None,
) -> "tuple[pd.DataFrame, int]":
    """The results frame in a file, and how many rows there should be.

    The file is a pickle, parquet, JSON lines, or LoadGen's log (.json), which holds token ids
    alone: `dataset_file` then has the rows they answer, and `tokenizer` is the directory with the
    tokenizer. Other results are held against the data set where it is given. `expected` rows are
    by default the data set's, and without one the benchmark's.

    Raises: UsageError if a log comes without either; InputFileError, EmptyDataError,
    GradingError, ModelError, ColumnsError.
    """
    from data.samples import read_frame

    is_log = input_file.suffix.lower() == ".json"
    if is_log and dataset_file is None:
        raise UsageError(f"{input_file} holds token ids alone: add --dataset-file")
    if is_log and not tokenizer:
        raise UsageError(
            f"{input_file} holds token ids alone: add --tokenizer, or --model, or set MLPERF_MODEL"
        )
    frame = None if is_log else read_frame(input_file)
    dataset = read_frame(dataset_file) if dataset_file else None
    if expected is None:
        expected = ROWS if dataset is None else len(dataset)
    if frame is None:
        assert dataset is not None  # said above
        assert tokenizer
        frame = _from_log(input_file, dataset, tokenizer)
    check_rows(frame, expected)
    if dataset is not None:
        _compare(frame, dataset, input_file, dataset_file)
    compared = dataset is not None and "question" in frame.columns and "question" in dataset.columns
    if "sample_index" not in frame.columns and not compared:
        _refuse_twins(frame)
    return frame, expected


def check_rows(frame: "pd.DataFrame", expected: int) -> None:
    """Make sure that no row is there twice or is missing, as far as the frame tells.

    Fewer rows than expected, the first ones, are for the verdict to say.

    Raises: GradingError naming the rows.
    """
    if len(frame) > expected:
        raise GradingError(
            f"{len(frame)} rows, but {expected} are expected: --expected-rows or --dataset-file"
        )
    if "sample_index" not in frame.columns:
        return
    indices = frame["sample_index"].tolist()
    for row, index in enumerate(indices):
        if not (isinstance(index, Integral) and 0 <= int(index) < expected):
            raise GradingError(
                f"row {row}: sample_index {quoted(index)} is not one of {expected} rows, 0 to"
                f" {expected - 1}"
            )
    counts = Counter(map(int, indices))
    if twice := sorted(index for index, count in counts.items() if count > 1):
        raise GradingError(f"samples answered more than once: {accuracy_log.named(twice)}")
    accuracy_log.refuse_gaps(counts, "the results")


def _refuse_twins(frame: "pd.DataFrame") -> None:
    """Make sure that no row is there twice, where rows bear no number.

    A question that is answered twice is warned of: it may be meant so, or two files in one. Where
    there are no questions, so is an answer that is long and there twice.

    Raises: GradingError naming two rows that are the same.
    """
    if "model_output" not in frame.columns:
        return  # who grades it says so
    names = [name for name in (*_SAME, "text_input") if name in frame.columns]
    told = "question" in names or "text_input" in names
    first: dict[tuple[str, ...], int] = {}
    answered = []  # rows, and an earlier one of the same question
    for row, (text, *cells) in enumerate(
        zip(*(map(str, frame[name]) for name in ("model_output", *names)), strict=True)
    ):
        twin = first.setdefault((text, *cells), row)
        if told and twin != row:
            raise GradingError(
                f"rows {twin} and {row} are the same, question and answer, and no sample_index"
                " tells them apart: add --dataset-file, whose rows are compared one by one"
            )
        if told:
            twin = first.setdefault(tuple(cells), row)
        if twin != row and (told or len(text) >= _LONG):
            answered.append((row, twin))
    if answered:
        log.warning(
            "%d rows have the %s of an earlier one (row %d that of row %d), and no sample_index"
            " tells whether they are there twice: --dataset-file compares them",
            *(len(answered), "question" if told else "answer and truth", *answered[0]),
        )


def find_problems(given: Path | None, beside: Sequence[Path]) -> Path | None:
    """The file of LiveCodeBench's problems: the one given, or the first where they usually lie.

    Raises: GradingError if the one given is not there.
    """
    if given is not None:
        if not given.is_file():
            raise GradingError(f"--livecodebench-file: no such file: {given}")
        return given
    candidates = [path.parent / PROBLEMS for path in beside] + [_DATA / PROBLEMS]
    return next((path for path in candidates if path.is_file()), None)


def _from_log(path: Path, dataset: "pd.DataFrame", tokenizer: str) -> "pd.DataFrame":
    from data.prompts import Prompts
    from data.results import answer_columns, answer_rows

    found = accuracy_log.read(path, len(dataset))
    if found.id_bytes == 8:
        log.warning("%s: ids have eight bytes and are read so; MLPerf's rules want int32", path)
    if len(found.answers) < len(dataset):
        log.warning("%s answers %d of %d samples", path, len(found.answers), len(dataset))
    prompts = Prompts(tokenizer)
    foreign = sum(int((ids >= prompts.vocabulary).sum()) for _, ids in found.answers)
    if foreign:
        log.warning(
            "%d ids are beyond the tokenizer's %d and have no text: is it the model's?",
            *(foreign, prompts.vocabulary),
        )
    ids = [accuracy_log.without_stop(answer, prompts.stop_ids) for _, answer in found.answers]
    indices = [index for index, _ in found.answers]
    # how an answer ended is not in the log
    dataset = dataset.drop(columns="finish", errors="ignore")
    return answer_rows(dataset, indices, answer_columns(ids, prompts))


def _compare(
    frame: "pd.DataFrame", dataset: "pd.DataFrame", input_file: Path, dataset_file: Path | None
) -> None:
    """Raises: GradingError if the results are not those of the data set's rows."""
    rows: Sequence[int] = range(len(frame))
    if "sample_index" in frame.columns:
        rows = frame["sample_index"].tolist()
    if max(rows) >= len(dataset):
        raise GradingError(f"{input_file} has a row {max(rows)}, {dataset_file} has none")
    for name in _SAME:
        if name not in frame.columns or name not in dataset.columns:
            continue
        for at, row in enumerate(rows):
            if str(frame[name].iloc[at]) != str(dataset[name].iloc[row]):
                raise GradingError(
                    f"{input_file}: row {at}: {name} is not that of row {row} of {dataset_file}"
                )
