"""Read the answers to grade, and check that they are complete and belong to the data set."""

import logging
from collections import Counter
from collections.abc import Sequence
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING

from benchmark import ROWS
from data.problems import PROBLEM_FILES
from errors import GradingError, UsageError
from grading import accuracy_log
from terminal import quoted

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

_DATA = Path(__file__).resolve().parents[1] / "data"
_SAME = ("dataset", "ground_truth", "question")  # columns that results share with their data set
_LONG = 200  # characters; answers as long as this are not equal by chance


def read_results(
    input_file: Path,
    dataset_file: Path | None,
    tokenizer: str | None,
    expected: int | None = None,
    skipped: int = 0,
) -> "tuple[pd.DataFrame, int]":
    """The results frame in a file, and the number of rows expected.

    The file is a pickle, parquet, JSON lines, or LoadGen's log (.json). A log has only token ids,
    so it needs `dataset_file` for the rows that they answer and `tokenizer`, the directory with the
    tokenizer. Other results are compared with the data set if there is one. `expected` defaults to
    the rows of the data set, or of the benchmark. `skipped`: the first rows of the data set, which
    the run left out.

    Raises: UsageError for a log without data set or tokenizer, or if all rows are skipped;
    InputFileError, EmptyDataError, GradingError, ModelError, ColumnsError.
    """
    from data.samples import read_frame

    is_log = input_file.suffix.lower() == ".json"
    if is_log and dataset_file is None:
        raise UsageError(f"{input_file} is a log of token ids: add --dataset-file")
    if is_log and not tokenizer:
        raise UsageError(
            f"{input_file} is a log of token ids: add --tokenizer or --model, or set MLPERF_MODEL"
        )
    frame = None if is_log else read_frame(input_file)
    dataset = read_frame(dataset_file) if dataset_file else None
    if skipped and dataset is None:
        raise UsageError("--skip-samples: add --dataset-file, whose rows it counts")
    if skipped and dataset is not None:
        if skipped >= len(dataset):
            raise UsageError(
                f"--skip-samples {skipped}: {dataset_file} has only {len(dataset)} rows"
            )
        dataset = dataset.iloc[skipped:].reset_index(drop=True)
    if expected is None:
        expected = ROWS if dataset is None else len(dataset)
    if frame is None:
        assert dataset is not None  # checked above
        assert tokenizer
        frame = _from_log(input_file, dataset, tokenizer)
    check_rows(frame, expected)
    if dataset is not None:
        _compare(frame, dataset, input_file, dataset_file)
    compared = dataset is not None and "question" in frame.columns and "question" in dataset.columns
    if "sample_index" not in frame.columns and not compared:
        _refuse_duplicates(frame)
    return frame, expected


def check_rows(frame: "pd.DataFrame", expected: int) -> None:
    """Check that no row is repeated or missing, by sample_index if the frame has it.

    Fewer rows than expected are no error if they are the first ones: the verdict reports that.

    Raises: GradingError naming the rows.
    """
    if len(frame) > expected:
        raise GradingError(
            f"{len(frame)} rows, but {expected} are expected: add --expected-rows or --dataset-file"
        )
    if "sample_index" not in frame.columns:
        return
    indices = frame["sample_index"].tolist()
    for row, index in enumerate(indices):
        if not (isinstance(index, Integral) and 0 <= int(index) < expected):
            raise GradingError(
                f"row {row}: sample_index {quoted(index)} is not a row of the data set, 0 to"
                f" {expected - 1}"
            )
    counts = Counter(map(int, indices))
    if duplicates := sorted(index for index, count in counts.items() if count > 1):
        raise GradingError(
            f"samples with more than one answer: {accuracy_log.first_few(duplicates)}"
        )
    accuracy_log.refuse_gaps(counts, "the results")


def _refuse_duplicates(frame: "pd.DataFrame") -> None:
    """Check that no row is repeated, in a frame without sample_index.

    Two answers to one question are no error, as the data set may repeat it, but cause a warning. So
    do two long answers that are equal, in a frame without questions.

    Raises: GradingError naming two rows with the same question and answer.
    """
    if "model_output" not in frame.columns:
        return  # the grader reports it
    names = [name for name in (*_SAME, "text_input") if name in frame.columns]
    has_question = "question" in names or "text_input" in names
    first: dict[tuple[str, ...], int] = {}
    repeats = []  # (row, earlier row)
    for row, (text, *cells) in enumerate(
        zip(*(map(str, frame[name]) for name in ("model_output", *names)), strict=True)
    ):
        earlier = first.setdefault((text, *cells), row)
        if has_question and earlier != row:
            raise GradingError(
                f"rows {earlier} and {row} have the same question and answer, and no sample_index"
                " tells them apart: add --dataset-file, whose rows are compared one by one"
            )
        if has_question:
            earlier = first.setdefault(tuple(cells), row)
        if earlier != row and (has_question or len(text) >= _LONG):
            repeats.append((row, earlier))
    if repeats:
        log.warning(
            "%d rows have the %s of an earlier row (row %d that of row %d), and without"
            " sample_index duplicates can't be recognised: add --dataset-file to compare the rows",
            *(len(repeats), "question" if has_question else "answer and truth", *repeats[0]),
        )


def no_problems() -> GradingError:
    """The error of rows that need LiveCodeBench's problems where there are none."""
    return GradingError(
        f"no {' or '.join(PROBLEM_FILES)} found: pass --livecodebench-file, or"
        " `python -m data.fetch problems` gets it"
    )


def find_problems(path: Path | None, neighbours: Sequence[Path]) -> Path | None:
    """LiveCodeBench's problems: `path`, a file or folder, or the first in the usual directories.

    `neighbours`: files in whose directories it is looked for, before data/.

    Raises: GradingError if `path` does not exist.
    """
    if path is not None:
        if not path.exists():
            raise GradingError(f"--livecodebench-file: no such file: {path}")
        return path
    folders = [*(neighbour.parent for neighbour in neighbours), _DATA]
    candidates = (folder / name for folder in folders for name in PROBLEM_FILES)
    return next((path for path in candidates if path.is_file()), None)


def _from_log(path: Path, dataset: "pd.DataFrame", tokenizer: str) -> "pd.DataFrame":
    from data.prompts import Prompts
    from data.results import answer_columns, answer_rows

    content = accuracy_log.read(path, len(dataset))
    if content.id_bytes == 8:
        log.warning("%s: token ids have 8 bytes and are read so; MLPerf's rules want int32", path)
    if len(content.answers) < len(dataset):
        log.warning("%s answers %d of %d samples", path, len(content.answers), len(dataset))
    prompts = Prompts(tokenizer)
    unknown = sum(int((ids >= prompts.vocabulary).sum()) for _, ids in content.answers)
    if unknown:
        log.warning(
            "%d token ids are outside the tokenizer's vocabulary of %d and have no text: is it the"
            " tokenizer of the model that was run?",
            *(unknown, prompts.vocabulary),
        )
    ids = [accuracy_log.without_stop(answer, prompts.stop_ids) for _, answer in content.answers]
    indices = [index for index, _ in content.answers]
    # the log has no finish reasons
    dataset = dataset.drop(columns="finish", errors="ignore")
    return answer_rows(dataset, indices, answer_columns(ids, prompts))


def _compare(
    frame: "pd.DataFrame", dataset: "pd.DataFrame", input_file: Path, dataset_file: Path | None
) -> None:
    """Raises: GradingError if the results belong to other rows than the data set's."""
    rows: Sequence[int] = range(len(frame))
    if "sample_index" in frame.columns:
        rows = frame["sample_index"].tolist()
    if max(rows) >= len(dataset):
        raise GradingError(
            f"{input_file} has row {max(rows)}, but {dataset_file} has only {len(dataset)} rows: is"
            " it the data set of this run?"
        )
    for name in _SAME:
        if name not in frame.columns or name not in dataset.columns:
            continue
        for position, row in enumerate(rows):
            if str(frame[name].iloc[position]) != str(dataset[name].iloc[row]):
                raise GradingError(
                    f"{input_file}: row {position}: {name} is not that of row {row} of"
                    f" {dataset_file}: is it the data set of this run?"
                )
