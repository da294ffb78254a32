"""The public data sets, at pinned revisions: found on disk or downloaded, and read as rows."""

import csv
import json
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from errors import ColumnsError, InputFileError
from ref_dsinfer import files, lookalike
from terminal import quoted

log = logging.getLogger(__name__)

Rows = list[dict[str, Any]]
ENDINGS = (".csv", ".parquet", ".jsonl")
HUB = "https://huggingface.co/datasets"
NOT_TEXT = {"Answer", "answer", "question_id", "options"}  # columns that may hold something else


@dataclass(frozen=True)
class Source:
    """One file of a data set on the Hugging Face hub."""

    repository: str
    revision: str
    path: str  # in the repository
    rows: int
    columns: tuple[str, ...]  # those that are used
    licence: str
    sha256: str | None = None  # of the file at this revision, where it is publicly known

    @property
    def page(self) -> str:
        """Where people find it."""
        return f"{HUB}/{self.repository}"


_GPQA = ("Idavidrein/gpqa", "633f5ee89ab8ad4522a9f850766b73f62147ffdd")
_MATH = ("DigitalLearningGmbH/MATH-lighteval", "0530c78699ea5e8eb5530600900e1f328b48acad")
_MMLU_PRO = ("TIGER-Lab/MMLU-Pro", "b189ec765aa7ed75c8acfea42df31fdae71f97be")
ANSWERS = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
# By name, which is also the name of a local copy. Those that end in _examples have no rows of the
# data set, only the examples in the prompts of others.
SOURCES: Mapping[str, Source] = {
    "aime": Source(
        "gneubig/aime-1983-2024",
        "5d610df981dec508dd93d0a16333a029ac1739d8",
        "AIME_Dataset_1983_2024.csv",
        rows=933,
        columns=("Question", "Answer"),
        licence="CC0-1.0",
    ),
    "gpqa": Source(
        *_GPQA,
        "gpqa_diamond.csv",
        rows=198,
        columns=("Question", *ANSWERS),
        licence="CC-BY-4.0",
    ),
    "gpqa_examples": Source(
        *_GPQA,
        "gpqa_extended.csv",
        rows=546,
        columns=("Question", *ANSWERS, "Explanation"),
        licence="CC-BY-4.0",
    ),
    "livecodebench": Source(
        "livecodebench/code_generation_lite",
        "0fe84c3912ea0c4d4a78037083943e8f0c4dd505",
        "test.jsonl",
        rows=400,
        columns=("question_id", "question_title", "question_content", "starter_code"),
        licence="CC (no version named)",
        sha256="2bd02b38beb48e8c46b5b9987095d999ff38cd8efc255ea5d58974317c48f63f",
    ),
    "math500": Source(
        "HuggingFaceH4/MATH-500",
        "6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be",
        "test.jsonl",
        rows=500,
        columns=("problem", "answer"),
        licence="MIT",
        sha256="35dc41080a3680858b27fa7e0533d2d547825316fc5dafe5d316f4ccc5a06132",
    ),
    "math_train_examples": Source(
        *_MATH,
        "data/train-00000-of-00001.parquet",
        rows=7500,
        columns=("problem", "solution"),
        licence="MIT",
        sha256="eca6e667f4305dd5e5ba09b4fd55e7f3174a0fbe361cdfd4c44758b593a76933",
    ),
    "math_test_examples": Source(
        *_MATH,
        "data/test-00000-of-00001.parquet",
        rows=5000,
        columns=("problem", "solution"),
        licence="MIT",
    ),
    "mmlu_pro": Source(
        *_MMLU_PRO,
        "data/test-00000-of-00001.parquet",
        rows=12_032,
        columns=("question", "options", "answer"),
        licence="MIT",
    ),
    "mmlu_pro_examples": Source(
        *_MMLU_PRO,
        "data/validation-00000-of-00001.parquet",
        rows=70,
        columns=("question", "options", "answer"),
        licence="MIT",
    ),
}


def find(folder: Path | None) -> dict[str, Path]:
    """The file of every source: in `folder`, or else downloaded from the hub (or its cache).

    A local copy is named after the source (`aime.csv`, `.parquet` or `.jsonl`), or lies where it
    lies in its repository, in a folder named after the source (`gpqa/gpqa_diamond.csv`).

    Raises: InputFileError naming all sources that are missing, and how to get each.
    """
    if folder is not None and not folder.is_dir():
        raise InputFileError(f"{folder}: no such folder")
    paths, faults = {}, []
    reachable = (
        True  # the hub, which the client tries several times, for minutes, before it gives up
    )
    for name, source in SOURCES.items():
        try:
            if folder is None:
                paths[name] = _download(source, reachable)
            else:
                paths[name] = _local(folder, name, source)
        except InputFileError as error:
            faults.append(f"  {name}: {error}")
            reachable &= not isinstance(error, _UnreachableError)
    if faults:
        heading = f"{len(faults)} of {len(SOURCES)} sources are missing:"
        raise InputFileError("\n".join([heading, *faults]))
    return paths


def read(path: Path, source: Source) -> Rows:
    """The rows of a source's file, with the columns that are used, in order.

    Raises: InputFileError if it is not a file of this kind or has another number of rows;
    ColumnsError naming a missing column, or the row and column of a missing value.
    """
    kind = path.suffix.lower()
    reader = {".csv": _csv, ".parquet": _parquet, ".jsonl": _json_lines}[kind]
    try:
        rows = list(reader(path, source.columns))
    except OSError as error:
        raise InputFileError(f"{path}: can't be read: {error.strerror or error}") from error
    except (ValueError, RecursionError, csv.Error) as error:
        expected = {".parquet": lookalike.PARQUET, ".jsonl": lookalike.JSON}.get(kind, "")
        actual = lookalike.instead_of(path, expected) if expected else None
        reason = f"it is {actual}" if actual else str(error).splitlines()[0][:200]
        raise InputFileError(f"{path}: not a {kind} file: {reason}") from error
    if len(rows) != source.rows:
        raise InputFileError(
            f"{path}: {len(rows)} rows, but {source.path} of {source.page} has {source.rows}"
        )
    return rows


def sha256(path: Path) -> str:
    """The SHA-256 hash of a file, in hexadecimal. Raises: InputFileError."""
    try:
        return files.sha256(path)
    except OSError as error:
        raise InputFileError(f"{path}: can't be read: {error.strerror or error}") from error


def _local(folder: Path, name: str, source: Source) -> Path:
    """Raises: InputFileError saying where it was looked for, and where it is from."""
    candidates = [folder / f"{name}{ending}" for ending in ENDINGS] + [folder / name / source.path]
    for path in candidates:
        if path.is_file():
            return path
    names = ", ".join(str(path.relative_to(folder)) for path in candidates)
    raise InputFileError(
        f"none of {names} in {folder}: get {source.path} from {source.page}"
        f" (revision {source.revision})"
    )


class _UnreachableError(InputFileError):
    """The hub can't be reached, and its cache has no copy."""


def _download(source: Source, reachable: bool) -> Path:
    """The file, from the hub if that is reachable, or from its cache.

    Raises: InputFileError saying what to do.
    """
    import httpx
    from huggingface_hub import errors, hf_hub_download

    try:
        log.info("getting %s of %s", source.path, source.page)
        path = hf_hub_download(
            source.repository,
            source.path,
            repo_type="dataset",
            revision=source.revision,
            local_files_only=not reachable,
        )
    except errors.GatedRepoError as error:
        raise InputFileError(
            f"{source.page} is gated: accept its terms there, and set HF_TOKEN to a token that may"
            " read it"
        ) from error
    except errors.LocalEntryNotFoundError as error:  # offline, or not reachable
        connected = not isinstance(error.__cause__, httpx.TransportError)  # or offline by choice
        raise (InputFileError if connected else _UnreachableError)(
            f"{source.page} can't be reached, and {source.path} is not in the cache: copy the"
            " sources, and pass their folder as --sources"
        ) from error
    except (errors.HfHubHTTPError, httpx.HTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise InputFileError(
            f"{source.path} of {source.page} (revision {source.revision}): {reason}"
        ) from error
    return Path(path)


def _csv(path: Path, columns: Collection[str]) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(1 << 30)  # a question may have more than the module's 131,072 characters
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        _require(path, columns, reader.fieldnames or ())
        yield from _checked(path, columns, reader)


def _parquet(path: Path, columns: Collection[str]) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path, pre_buffer=False)
        _require(path, columns, file.schema_arrow.names)
        for batch in file.iter_batches(256, columns=list(columns)):
            yield from _checked(path, columns, batch.to_pylist())
    except (pa.ArrowException, OSError) as error:
        raise ValueError(str(error)) from error


def _json_lines(path: Path, columns: Collection[str]) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError(f"line {number} is not an object")
            _require(path, columns, row)
            yield from _checked(path, columns, [row])


def _require(path: Path, columns: Iterable[str], present: Collection[str]) -> None:
    missing = [name for name in columns if name not in present]
    if missing:
        raise ColumnsError(
            f"{path}: missing columns: {', '.join(missing)} (present: {', '.join(present)})"
        )


def _checked(
    path: Path, columns: Collection[str], rows: Iterable[Mapping[str, Any]]
) -> Iterator[dict[str, Any]]:
    """The used columns of rows. Raises: ColumnsError for a value that is missing or no text."""
    for row in rows:
        cells = {name: row[name] for name in columns}
        for name, cell in cells.items():
            if cell is None or not (name in NOT_TEXT or isinstance(cell, str)):
                what = "missing" if cell is None else f"{type(cell).__name__}, not text,"
                raise ColumnsError(f"{path}: {name} is {what} in the row {quoted(cells)}")
        yield cells
