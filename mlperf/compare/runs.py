"""The runs that are compared: a result folder with what a comparison needs of it."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.journal import read_inputs
from errors import InputFileError
from mlperf import result_folder
from mlperf.report_page.samples import answers_path
from mlperf.report_page.verdict import Verdict, verdict
from mlperf.result_folder import ResultFolder
from mlperf.run import JOURNAL, RECORD
from mlperf.state import STATE

if TYPE_CHECKING:
    import pandas as pd

# Parts of run.json that say how a run was made. Of the engine's configuration, `log` is a path.
SETTINGS = ("backend", "engine", "settings", "machine", "versions", "skipped_rows", "mlperf_conf")
WITHOUT = ("engine.log",)
# Inputs of the journal that are in none of these.
INPUTS = ("the model", "the data set", "the number of rows", "the prompts", "max_new_tokens")


@dataclass(frozen=True)
class Run:
    """A run and what is left of it."""

    name: str  # a letter, in the order of the command line
    result: ResultFolder

    @property
    def folder(self) -> Path:
        return self.result.path

    @property
    def record(self) -> dict[str, Any]:
        """run.json; empty if the run did not finish."""
        return self.result.record if self.result.record and self.result.finished else {}

    @property
    def figures(self) -> dict[str, float]:
        """By name with unit; those that JSON can't hold are missing."""
        return {name: value for name, value in self.result.figures.items() if value is not None}

    @property
    def title(self) -> str:
        """Engine, scenario and test."""
        parts = [self.record.get(key) for key in ("backend", "mode", "test")]
        return ", ".join(str(part) for part in parts if part) or "a run without figures"

    @cached_property
    def verdict(self) -> Verdict:
        """As in the run's own report."""
        return verdict(self.result, datetime.now().astimezone())

    @property
    def warnings(self) -> list[str]:
        """What has to be known before its figures are read."""
        return [*([] if self.result.finished else [self.verdict.word]), *self.verdict.lines]

    @cached_property
    def answers(self) -> "pd.DataFrame | None":
        """The answers, graded if they were, each sample's first one; None if there are none.

        Raises: InputFileError, ColumnsError, EmptyDataError for a damaged file.
        """
        from data import schema
        from data.samples import naming, read_frame

        path = answers_path(self.result)
        if path is None:
            return None
        frame = read_frame(path)
        with naming(path):
            schema.require(frame, ("sample_index", "tok_model_output", "model_output"))
        return frame.drop_duplicates("sample_index").set_index("sample_index", drop=False)

    @property
    def graded(self) -> bool:
        """Whether its answers have grades."""
        return self.answers is not None and "prompt_accuracy" in self.answers.columns

    @cached_property
    def configuration(self) -> dict[str, str]:
        """How the run was made, as text by dotted names."""
        flat = dict(_flatten({key: self.record[key] for key in SETTINGS if key in self.record}))
        for name, value in _flatten(self.result.engine or {}):
            if flat.get(f"engine.{name}") != value:
                flat[f"effective.{name}"] = value
        journal = self.folder / JOURNAL
        if self.record and journal.exists():
            inputs = read_inputs(journal)
            flat |= {name: str(inputs[name]) for name in INPUTS if name in inputs}
        return {name: value for name, value in flat.items() if name not in WITHOUT}


def read_run(name: str, folder: Path) -> Run:
    """The run in a folder, or the only one in folders under it.

    Raises: InputFileError if there is none, or several.
    """
    below = sorted({path.parent for file in (RECORD, STATE) for path in folder.rglob(file)})
    if folder not in below and len(below) > 1:
        raise InputFileError(
            f"{folder}: {len(below)} runs in it: pass one of {', '.join(map(str, below))}"
        )
    return Run(name, result_folder.read(below[0] if len(below) == 1 else folder))


def differences(runs: list[Run]) -> dict[str, list[str | None]]:
    """What differs in the configurations of runs: a value a run, None where it has none."""
    names = {name: None for run in runs for name in run.configuration}  # in order, each once
    values = {name: [run.configuration.get(name) for run in runs] for name in names}
    return {name: row for name, row in values.items() if len(set(row)) > 1}


def _flatten(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)
