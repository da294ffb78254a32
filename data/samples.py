"""Read data sets and result files: load a frame safely, check it, make samples of its rows."""

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from numbers import Number
from pathlib import Path
from typing import TYPE_CHECKING

from data import pickles, schema, tables
from errors import ColumnsError, EmptyDataError, InputFileError
from ref_dsinfer import lookalike
from terminal import quoted

if TYPE_CHECKING:
    import pandas as pd

TASKS = ("gpqa", "mmlu_pro", "math500", "aime", "livecodebench")  # in the order of matching
PICKLES = (".pkl", ".pickle")
DATA_SET = "final_output.pkl"  # in data/, unless a script is told another one
ENDINGS = (*PICKLES, ".parquet", ".jsonl")  # of the files that can be read
_TRUTH_BITS = 4096  # Python refuses to convert integers much longer than this to text


@dataclass(frozen=True)
class Sample:
    """One row of the data set."""

    index: int  # row in the data set, from 0
    task: str  # canonical name, one of TASKS
    prompt_text: str  # instructions and question, before the chat template; "" if there are ids
    ground_truth: object  # as the data set holds it: text, a number, or a missing value
    prompt_ids: tuple[int, ...] | None = None  # of a data set without texts: the prompt as it is


def read_frame(path: str | Path, only: Collection[str] | None = None) -> "pd.DataFrame":
    """Read a frame from a pickle, a parquet file or JSON lines; rows are numbered from 0.

    `only`: the columns that are wanted, of those that there are; all are read.

    A pickle is parsed, never executed. Columns are plain: categories become their values, nullable
    numbers become numbers or None, decimals and dates with a time zone become text. Lists of token
    ids become arrays, of int32 if the ids fit.

    Raises: InputFileError if the file can't be read or is not a data frame; ColumnsError naming
    the column (and row) whose values are unsupported, or a duplicate column; EmptyDataError.
    """
    path = Path(path)
    kind = path.suffix.lower()
    if kind not in ENDINGS:
        raise InputFileError(f"{path}: expected a .pkl, .pickle, .parquet or .jsonl file")
    try:
        with path.open("rb") as file:
            if kind == ".parquet":
                frame = tables.parquet(file, only)
            elif kind == ".jsonl":
                frame = tables.json_lines(file)
            else:
                frame = pickles.load(file)
    except OSError as error:
        if error.strerror is None:  # pyarrow's, of what is in the file
            raise _damaged(path, error) from error
        hint = "; `python -m data.fetch` gets the benchmark's" if path.name == DATA_SET else ""
        raise InputFileError(f"{path}: can't be read: {error.strerror}{hint}") from error
    except ColumnsError as error:
        twin = path.with_suffix(".parquet")
        hint = f", or use {twin}" if kind != ".parquet" and twin.is_file() else ""
        raise ColumnsError(f"{path}: {error}{hint}") from error
    except Exception as error:  # on damaged input these libraries raise almost anything
        raise _damaged(path, error) from error
    duplicates = frame.columns[frame.columns.duplicated()]
    if len(duplicates):
        raise ColumnsError(f"{path}: two columns are named {quoted(duplicates[0])}: rename one")
    if frame.empty:
        raise EmptyDataError(f"{path}: the data frame has no rows")
    if only is not None:
        frame = frame[[name for name in frame if name in only]]
    return tables.plain(frame)


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Put the file's name before the message of a ColumnsError."""
    try:
        yield
    except ColumnsError as error:
        raise ColumnsError(f"{path}: {error}") from error


def samples(frame: "pd.DataFrame") -> list[Sample]:
    """The rows of a data set as samples, in order: with their texts, or without any with their ids.

    Raises: ColumnsError for a missing column, a prompt or question that is not text, a ground truth
    that is neither text nor number, an unknown data set name, or ids that are no token ids.
    """
    schema.require(frame, schema.FOR_RUN)
    texts = [name for name in ("question", schema.TEXT) if name in frame.columns]
    require_text(frame, texts)
    require_unicode(frame, texts)
    require_truths(frame)
    prompts: Iterable[tuple[str, tuple[int, ...] | None]]
    if schema.TEXT in frame.columns:
        prompts = ((text, None) for text in frame[schema.TEXT])
    else:
        prompts = (("", ids) for ids in schema.token_ids(frame))
    rows = zip(frame["dataset"], frame["ground_truth"], prompts, strict=True)
    return [
        Sample(index, row_task(index, dataset), text, truth, ids)
        for index, (dataset, truth, (text, ids)) in enumerate(rows)
    ]


def task_of(dataset: object) -> str:
    """The task whose name is part of a data set's name, such as aime in AIME1983.

    Names are matched in lower case and in the order of `TASKS`, as in the public grader, then once
    more without punctuation, so that MMLU-Pro and math-500 match too.

    Raises: ValueError naming the known tasks.
    """
    if isinstance(dataset, str):
        lower = dataset.lower()
        bare = re.sub(r"[\W_]", "", lower)
        for task in TASKS:
            if task in lower:
                return task
        for task in TASKS:
            if task.replace("_", "") in bare:
                return task
    raise ValueError(f"unknown data set {quoted(dataset)} (known tasks: {', '.join(TASKS)})")


def row_task(index: int, name: object) -> str:
    """The task of row `index` of the data set `name`. Raises: ColumnsError naming both."""
    if not isinstance(name, str):
        raise ColumnsError(f"row {index}: dataset is {_kind(name)}, not text")
    try:
        return task_of(name)
    except ValueError as error:
        raise ColumnsError(f"row {index}: {error}") from error


def require_text(frame: "pd.DataFrame", columns: Sequence[str], missing: bool = False) -> None:
    """Check that every cell of `columns` is text, or with `missing` text or missing.

    Raises: ColumnsError naming the row and column of a cell that isn't.
    """
    for column in columns:
        for row, cell in enumerate(frame[column]):
            if not isinstance(cell, str) and not (missing and is_missing(cell)):
                raise ColumnsError(f"row {row}: {column} is {_kind(cell)}, not text")


def require_unicode(frame: "pd.DataFrame", columns: Sequence[str]) -> None:
    """Check that the texts of `columns` can be encoded as UTF-8, as tokenizers require.

    Raises: ColumnsError naming the row and column of a text that can't.
    """
    for column in columns:
        for row, text in enumerate(frame[column]):
            try:
                text.encode()
            except UnicodeEncodeError as error:
                code = f"U+{ord(text[error.start]):04X}"
                raise ColumnsError(
                    f"row {row}: {column} is not valid Unicode: lone surrogate {code} at character"
                    f" {error.start}"
                ) from None


def require_truths(frame: "pd.DataFrame") -> None:
    """Raises: ColumnsError naming the row whose ground truth is not text, a number or missing."""
    for row, truth in enumerate(frame["ground_truth"]):
        if not (isinstance(truth, str | Number) or is_missing(truth)):
            raise ColumnsError(
                f"row {row}: ground_truth is {_kind(truth)}, neither text nor number"
            )
        if isinstance(truth, int) and truth.bit_length() > _TRUTH_BITS:
            raise ColumnsError(
                f"row {row}: ground_truth is a number of {truth.bit_length()} bits, more than"
                f" {_TRUTH_BITS}"
            )


def is_missing(value: object) -> bool:
    """Whether a cell is None, NaN or another of pandas' missing values."""
    import pandas as pd

    if isinstance(value, Decimal):  # comparing its signalling NaN raises
        return value.is_nan()
    return bool(pd.api.types.is_scalar(value) and pd.isna(value))  # type: ignore[call-overload]


def _kind(value: object) -> str:
    return "missing" if is_missing(value) else f"{type(value).__name__}"


def _damaged(path: Path, error: Exception) -> InputFileError:
    kind = path.suffix.lower()
    expected = {".parquet": lookalike.PARQUET, ".jsonl": lookalike.JSON}
    actual = lookalike.instead_of(path, expected.get(kind, lookalike.PICKLE))
    reason = f"it is {actual}" if actual else _first_line(error)
    return InputFileError(f"{path}: not a {kind} data frame: {reason}")


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
