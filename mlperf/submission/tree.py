"""The folders and files of a submission tree, and what they contain.

closed|open/<organisation>/
  src/  systems/<system>.json  systems/<system>_power.yaml
  results/<system>/deepseek-r1/<Offline|Server|Interactive>/
    performance/run_1/  accuracy/  TEST06/  measurements.json  user.conf  README.md
    runs.json  relaxations.json     ours: what the runs recorded, which rules are relaxed
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from errors import InputFileError, LoadGenError
from mlperf.report import DETAIL_LOG, DetailLog, read_detail
from mlperf.submission.rounds import Round

BENCHMARK = "deepseek-r1"
DIVISIONS = ("closed", "open")
SCENARIOS = {"offline": "Offline", "server": "Server", "interactive": "Interactive"}  # of a mode
SUMMARY_LOG = "mlperf_log_summary.txt"
ACCURACY_LOG = "mlperf_log_accuracy.json"
ACCURACY_TEXT = "accuracy.txt"
VERIFIED = "verify_accuracy.txt"
MEASUREMENTS = "measurements.json"
USER_CONF = "user.conf"
README = "README.md"
RUNS = "runs.json"
RELAXATIONS = "relaxations.json"
# of the endpoints client, instead of LoadGen's logs
CONFIGS = ("config.yaml", "config.yml")
ENDPOINTS_SUMMARY = Path("performance", "result_summary.json")
ENDPOINTS_ACCURACY = Path("accuracy", "accuracy_results.json")


@dataclass(frozen=True)
class System:
    """A system of an organisation, in one division."""

    round: Round
    root: Path
    division: str
    organisation: str
    name: str

    @property
    def home(self) -> Path:
        """The organisation's folder."""
        return self.root / self.division / self.organisation

    @property
    def closed(self) -> bool:
        return self.division == "closed"

    @property
    def description(self) -> Path:
        return self.home / "systems" / f"{self.name}.json"

    @property
    def power_description(self) -> Path:
        return self.home / "systems" / f"{self.name}_power.yaml"

    @property
    def sources(self) -> Path:
        return self.home / "src"

    @cached_property
    def results(self) -> "list[Result]":
        """Of this benchmark; the open division may have it under another name."""
        return [
            Result(self, benchmark.name, scenario.name)
            for benchmark in _folders(self.home / "results" / self.name)
            if self._is_ours(benchmark.name)
            for scenario in _folders(benchmark)
        ]

    def result(self, mode: str) -> "Result":
        """The results of a mode, whether they are there or not."""
        return Result(self, BENCHMARK, SCENARIOS[mode])

    def _is_ours(self, benchmark: str) -> bool:
        mapping = read_json(self.home / "model_mapping.json") or {}
        return benchmark == BENCHMARK or (not self.closed and mapping.get(benchmark) == BENCHMARK)


@dataclass(frozen=True)
class Result:
    """The results of a system in one scenario. A file that can't be read is None."""

    system: System
    benchmark: str  # the folder's name
    scenario: str  # the folder's name

    @property
    def folder(self) -> Path:
        system = self.system
        return system.home / "results" / system.name / self.benchmark / self.scenario

    @property
    def mode(self) -> str | None:
        """None for a folder that is no scenario of the benchmark."""
        names = {name: mode for mode, scenario in SCENARIOS.items() for name in (mode, scenario)}
        return names.get(self.scenario)

    @property
    def performance_log(self) -> Path:
        return self.folder / "performance" / "run_1" / DETAIL_LOG

    @property
    def accuracy_folder(self) -> Path:
        return self.folder / "accuracy"

    @property
    def test06(self) -> Path:
        return self.folder / "TEST06"

    @property
    def test06_log(self) -> Path:
        """Of LoadGen; the rules do not require it."""
        return self.test06 / self.performance_log.relative_to(self.folder)

    @property
    def config(self) -> Path:
        """Of the endpoints client."""
        paths = [self.folder / name for name in CONFIGS]
        return next((path for path in paths if path.exists()), paths[0])

    @property
    def of_endpoints(self) -> bool:
        """Whether the endpoints client made these results, rather than LoadGen."""
        logs = (self.performance_log, self.accuracy_folder / DETAIL_LOG)
        theirs = (self.config, *(self.folder / name for name in _THEIRS))
        return not any(path.exists() for path in logs) and any(path.exists() for path in theirs)

    @cached_property
    def performance(self) -> DetailLog | None:
        return _log(self.performance_log)

    @cached_property
    def accuracy(self) -> DetailLog | None:
        return _log(self.accuracy_folder / DETAIL_LOG)

    @cached_property
    def compliance(self) -> DetailLog | None:
        return _log(self.test06_log)

    @cached_property
    def runs(self) -> dict[str, Any]:
        """What the runs recorded, by test: performance, accuracy, compliance."""
        return read_json(self.folder / RUNS) or {}


_THEIRS = (ENDPOINTS_SUMMARY, ENDPOINTS_ACCURACY)


def systems(root: Path, round_: Round) -> list[System]:
    """Every system of a tree that has a description or results.

    Raises: InputFileError if the folder is not a submission tree.
    """
    if not any((root / division).is_dir() for division in DIVISIONS):
        raise InputFileError(
            f"{root}: no submission tree: expected a folder {' or '.join(DIVISIONS)} in it"
        )
    return [
        System(round_, root, division, home.name, name)
        for division in DIVISIONS
        for home in _folders(root / division)
        for name in sorted(
            {path.stem for path in (home / "systems").glob("*.json")}
            | {path.name for path in _folders(home / "results")}
        )
    ]


def load_json(path: Path) -> dict[str, Any]:
    """Raises: InputFileError if the file can't be read or holds no JSON object."""
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise InputFileError(f"{path}: can't be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputFileError(f"{path}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise InputFileError(f"{path}: must be a JSON object, with fields")
    return value


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object, or None if there is none that can be read."""
    try:
        return load_json(path)
    except InputFileError:
        return None


def line_with(path: Path, text: str, within: str | None = None) -> int | None:
    """The first line that contains a text, from 1; if `within` is given, of those after a line
    with this field."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return None
    numbered = iter(enumerate(lines, 1))
    if within and not any(f'"{within}": ' in line for _, line in numbered):
        return None
    return next((number for number, line in numbered if text in line), None)


def _log(path: Path) -> DetailLog | None:
    try:
        return read_detail(path)
    except LoadGenError:
        return None


def _folders(path: Path) -> Iterator[Path]:
    return (one for one in sorted(path.glob("*")) if one.is_dir())
