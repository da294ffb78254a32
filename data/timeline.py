"""The timeline of a run, `timeline.parquet`: a row a request, and a row a second.

Both kinds of rows are in one table, `COLUMNS`; a column that only the other kind has is null. Times
are seconds since the run's start. What is not known is null too:

- A request that the run's end has cut off has no `finish_s`, `answer_tokens` and `finish`. Where
  answers come whole (Offline, run_eval), no request has a `first_token_s`.
- A second has of `running`, `waiting`, `cache_use` and `preemptions` what the engine tells.

Samples that `--resume` took from an earlier run have no row. The metadata under `KEY` is a CRC-32
in hexadecimal, and a JSON object that it is of: the schema's `VERSION`, the number of rows, and the
fields of `Metadata`. Parquet itself has checksums for the rows alone.
"""

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from errors import InputFileError
from ref_dsinfer.files import write_whole
from terminal import quoted

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import pyarrow as pa

VERSION = 1
KEY = b"timeline"
REQUEST, SECOND = "request", "second"
SHARED = {"kind": "string", "arrival_s": "float64", "finish_s": "float64"}
OF_REQUESTS = {
    "request_id": "int64",  # LoadGen's query id; of run_eval the row
    "sample_index": "int32",  # row of the data set
    "first_token_s": "float64",
    "prompt_tokens": "int32",
    "answer_tokens": "int32",  # without the stop id
    "finish": "string",  # stop or length
    "endpoint": "string",  # the server that answered; null where there is only one engine
}
OF_SECONDS = {  # a second is from arrival_s to finish_s; the last one is shorter
    "tokens": "int32",  # received in it, of all requests
    "running": "int32",  # requests, at its start
    "waiting": "int32",  # requests
    "cache_use": "float32",  # fraction of the KV cache
    "preemptions": "int64",  # since the run's start
}
COLUMNS = SHARED | OF_REQUESTS | OF_SECONDS


@dataclass(frozen=True)
class Metadata:
    """What a timeline is of."""

    scenario: str | None  # offline, server or interactive; None: run_eval, without LoadGen
    mode: str  # performance, accuracy, compliance or eval
    backend: str
    start: float  # of the run: unix time in seconds


@dataclass(frozen=True)
class Timeline:
    """A run's timeline. What is not known is NaN, also where a column is text."""

    requests: "pd.DataFrame"  # with `arrival_s`, `finish_s` and OF_REQUESTS, in order of arrival
    seconds: "pd.DataFrame"  # with `arrival_s`, `finish_s` and OF_SECONDS, in order
    metadata: Metadata


def write_timeline(
    path: Path,
    requests: Mapping[str, "Sequence[Any] | np.ndarray"],
    seconds: Mapping[str, "Sequence[Any] | np.ndarray"],
    metadata: Metadata,
) -> None:
    """Write a timeline. `requests` and `seconds`: values by column; None or NaN if not known.

    Raises: OutputError.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = len(requests["arrival_s"]) + len(seconds["arrival_s"])
    about = json.dumps({"version": VERSION, "rows": rows, **asdict(metadata)}).encode()
    schema = _schema().with_metadata({KEY: b"%08x%b" % (zlib.crc32(about), about)})
    parts = []
    for kind, columns in ((REQUEST, requests), (SECOND, seconds)):
        rows = len(columns["arrival_s"])
        every = {"kind": [kind] * rows, **columns}
        arrays = [
            pa.array(every[field.name], field.type, from_pandas=True)
            if field.name in every
            else pa.nulls(rows, field.type)
            for field in schema
        ]
        parts.append(pa.Table.from_arrays(arrays, schema=schema))
    table = pa.concat_tables(parts)
    write_whole(path, lambda partial: pq.write_table(table, partial, write_page_checksum=True))


def read_timeline(path: Path) -> Timeline:
    """Raises: InputFileError if the file can't be read, is damaged or is no timeline."""
    try:
        table = _read(path)
    except OSError as error:
        if error.strerror is None:  # pyarrow's, of what is in the file
            raise _damaged(path, error) from error
        raise InputFileError(f"{path}: can't be read: {error.strerror}") from error
    except Exception as error:  # on damaged input pyarrow raises almost anything
        raise _damaged(path, error) from error
    metadata = _metadata(path, table)
    if not table.schema.equals(_schema()):
        columns = ", ".join(f"{field.name} {field.type}" for field in table.schema)
        raise InputFileError(f"{path}: its columns are not a timeline's: {quoted(columns, 400)}")
    kinds = set(table.column("kind").to_pylist())
    if not kinds <= {REQUEST, SECOND}:
        unknown = quoted(next(iter(kinds - {REQUEST, SECOND})))
        raise InputFileError(f"{path}: kind {unknown}: it must be {REQUEST} or {SECOND}")
    return Timeline(_rows(table, REQUEST, OF_REQUESTS), _rows(table, SECOND, OF_SECONDS), metadata)


def _damaged(path: Path, error: Exception) -> InputFileError:
    return InputFileError(f"{path}: damaged, or not a timeline: {quoted(str(error))}")


def _schema() -> "pa.Schema":
    import pyarrow as pa

    return pa.schema([(name, pa.type_for_alias(type_)) for name, type_ in COLUMNS.items()])


def _read(path: Path) -> "pa.Table":
    import pyarrow.parquet as pq

    with path.open("rb") as file, pq.ParquetFile(file, page_checksum_verification=True) as source:
        table = source.read()
    table.validate(full=True)
    return table


def _metadata(path: Path, table: "pa.Table") -> Metadata:
    content = (table.schema.metadata or {}).get(KEY)
    if content is None:
        raise InputFileError(
            f"{path}: not a timeline: run_mlperf writes one as timeline.parquet, run_eval as"
            " NAME.timeline.parquet"
        )
    checksum, about = content[:8], content[8:]
    if checksum != b"%08x" % zlib.crc32(about):
        raise InputFileError(f"{path}: damaged: its metadata do not have their checksum")
    values = json.loads(about)
    version, rows = values.pop("version"), values.pop("rows")
    if version != VERSION:
        raise InputFileError(
            f"{path}: a timeline of version {version}, and this program reads version {VERSION}"
        )
    if rows != table.num_rows:
        raise InputFileError(f"{path}: damaged: it has {table.num_rows} of {rows} rows")
    return Metadata(**values)


def _rows(table: "pa.Table", kind: str, own: Mapping[str, str]) -> "pd.DataFrame":
    import pyarrow.compute as pc

    rows = table.filter(pc.equal(table["kind"], kind)).select(["arrival_s", "finish_s", *own])
    frame: pd.DataFrame = rows.to_pandas(ignore_metadata=True)
    return frame.sort_values("arrival_s", kind="stable", ignore_index=True)
