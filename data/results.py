"""Write answers: the results frame as a pickle and a parquet file."""

import tempfile
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data import frames, pickles
from data.frames import ROW_GROUP
from data.journal import Answer
from data.prompts import Prompts
from errors import OutputError
from ref_dsinfer.files import write_whole

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

SUFFIXES = (".pkl", ".parquet")


def results_frame(
    frame: "pd.DataFrame",
    answers: Sequence[Answer],
    prompts: Prompts,
    backend: str,
) -> "pd.DataFrame":
    """One row per answer, by sample index and request id: the data set's columns and the answer's.

    `answers`: pairs of sample index and completion; a sample may have several. Added columns:
    sample_index, query_id, model_output (text), tok_model_output (token ids), tok_model_output_len
    (tokens, without the stop id), finish (the finish reason) and model_backend.
    """
    ordered = sorted(answers, key=lambda pair: (pair[0], pair[1].request_id))
    indices = [index for index, _ in ordered]
    completions = [completion for _, completion in ordered]
    return answer_rows(
        frame,
        indices,
        {
            "query_id": [completion.request_id for completion in completions],
            **answer_columns([completion.token_ids for completion in completions], prompts),
            "finish": [completion.finish for completion in completions],
            "model_backend": [backend] * len(completions),
        },
    )


def answer_columns(
    answers: "Sequence[array | memoryview | np.ndarray]", prompts: Prompts
) -> "dict[str, list | pd.Series]":
    """The columns computed from answers' token ids (without the stop id); ids as int32 arrays."""
    import numpy as np

    arrays = [np.asarray(ids, np.int32) for ids in answers]
    return {
        "model_output": _texts(arrays, prompts),
        "tok_model_output": arrays,
        "tok_model_output_len": [len(ids) for ids in arrays],
    }


def answer_rows(
    frame: "pd.DataFrame", indices: Sequence[int], columns: "Mapping[str, list | pd.Series]"
) -> "pd.DataFrame":
    """The rows of a data set at `indices`, with sample_index and `columns` as more columns."""
    import pandas as pd

    columns = {"sample_index": list(indices), **columns}
    rows = frame.drop(columns=list(columns), errors="ignore").iloc[list(indices)]
    return pd.concat([rows.reset_index(drop=True), pd.DataFrame(columns)], axis=1)


def write_frame(frame: "pd.DataFrame", path: str | Path) -> list[Path]:
    """Write a frame as a pickle and a parquet file of the same name, each of them atomically.

    `path`: with or without the ending .pkl, .pickle or .parquet. Both give the same values: see
    `data.kinds` for columns of several types (AIME's answers are numbers, other tasks' are text).

    Raises: OutputError.
    """
    pickle_path, parquet_path = result_paths(path)
    write_whole(pickle_path, lambda path: pickles.dump(frame, path))
    write_whole(parquet_path, lambda path: frames.write_parquet(frame, path))
    return [pickle_path, parquet_path]


def result_paths(path: str | Path) -> list[Path]:
    """The paths of the pickle and the parquet file that `write_frame` writes for `path`."""
    path = Path(path)
    if path.suffix.lower() in (*SUFFIXES, ".pickle"):
        path = path.with_suffix("")
    return [path.with_name(path.name + suffix) for suffix in SUFFIXES]


def check_writable(path: str | Path) -> None:
    """Check, before a long run, that results can be written to `path`.

    `path`: a directory, which is created if it does not exist, or a file with one of the endings
    of results.

    Raises: OutputError.
    """
    path = Path(path)
    is_file = path.suffix.lower() in (*SUFFIXES, ".pickle", ".json", ".jsonl", ".txt")
    folder = path.parent if is_file and not path.is_dir() else path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(f"{folder}: can't be written: {error.strerror}") from error
    if is_file and path.is_dir():
        raise OutputError(f"{path}: is a directory, but a file is to be written there")


def _texts(answers: "Sequence[np.ndarray]", prompts: Prompts) -> "pd.Series":
    """The texts, made in pieces: text objects of all answers at once could fill the memory."""
    import pandas as pd

    pieces = [
        pd.Series([prompts.text(ids.tolist()) for ids in answers[start : start + ROW_GROUP]])
        for start in range(0, max(len(answers), 1), ROW_GROUP)
    ]
    return pd.concat(pieces, ignore_index=True)
