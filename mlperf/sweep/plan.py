"""What a sweep measures: engines, each with the values of the options that vary.

From a TOML file, or from the command line, which makes the same table:

    options = ["--model", "data/tiny/model"]    # of run_mlperf, for all points

    [vary]                                      # options and their values, all combined
    mode = ["server", "interactive"]
    target-qps = [2, 4, 8]

    [engines.pytorch]
    processes = 2                               # of torchrun
    [engines.vllm-eager]                        # any name
    backend = "vllm"                            # default: the name
    python = "/opt/vllm/bin/python"             # default: that of setup.sh's environment
    options = ["--eager"]
    vary = { max-running = [32, 64] }           # for this engine alone
"""

import argparse
import hashlib
import json
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from itertools import product
from pathlib import Path
from typing import Any, NoReturn

from backends import registry
from data.workload import model_identity
from errors import InputFileError, UsageError
from mlperf import launch
from mlperf import run as mlperf_run
from mlperf.report import PACKAGES
from ref_dsinfer.files import sha256

Value = str | int | float | bool  # of an option; true is a switch, false its absence
Vary = Mapping[str, Sequence[Value]]  # by an option's name, without its dashes

POINTS = "points"  # folder in the output directory
# Options that a sweep sets, or that make another test than the one that it measures.
OURS = (
    *("backend", "output-dir", "log-dir", "output-file", "resume", "dry-run", "accuracy"),
    *("compliance", "find-target-qps", "write-user-conf", "probe-duration"),
)
# What changes nothing that is measured.
PLACES = ("output_dir", "log_dir", "output_file", "dry_run", "mode_option", "trace", "live")
FILES = ("input_file", "user_conf", "mlperf_conf")  # what is in them is measured


@dataclass(frozen=True)
class Engine:
    """An engine in its own environment."""

    name: str
    backend: str
    python: Path
    processes: int  # of torchrun; 0: started without it
    options: tuple[str, ...]
    vary: Vary


@dataclass(frozen=True)
class Point:
    """A run of the sweep."""

    engine: Engine
    values: Mapping[str, Value]  # of the options that vary
    options: tuple[str, ...]  # of run_mlperf, all of them but the place of the results
    mode: str
    folder: Path  # of its results; its name has the hash of its effective configuration

    @property
    def label(self) -> str:
        """What distinguishes it, for people."""
        return " ".join([self.engine.name, *(f"{k}={_text(v)}" for k, v in self.values.items())])

    @property
    def command(self) -> list[str]:
        """Of the run, with its results in the sweep's folder."""
        return self.command_to("--log-dir", self.folder)

    def command_to(self, option: str, folder: Path) -> list[str]:
        """Of the same run with its results elsewhere."""
        start = launch.script(self.engine.processes, str(self.engine.python))
        return [*start, *self.options, option, str(folder)]


def read(path: Path) -> dict[str, Any]:
    """The table of a TOML file. Raises: InputFileError."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputFileError(f"{path}: can't be read: {error.strerror}") from error
    except ValueError as error:
        raise InputFileError(f"{path}: not TOML: {error}") from error


def points(table: Mapping[str, Any], source: str, output_dir: Path) -> list[Point]:
    """The points of a sweep, each once. `source`: where the table is from, for messages.

    Raises: UsageError for a key, an engine or an option that does not exist, or that is not for a
    sweep to set; InputFileError for a data set or configuration file that can't be read.
    """
    table = _checked(table, source, {"options": list, "vary": dict, "engines": dict})
    engines = [
        _engine(name, content, f"{source}: engines.{name}")
        for name, content in table.get("engines", {}).items()
    ]
    if not engines:
        raise UsageError(f"{source}: no engine: name one or more")
    options = _words(table.get("options", []), f"{source}: options")
    vary = _vary(table.get("vary", {}), f"{source}: vary")
    every: dict[Path, Point] = {}
    for engine in engines:
        for point in _of_engine(engine, options, vary, output_dir):
            every.setdefault(point.folder, point)
    return list(every.values())


def _of_engine(
    engine: Engine, options: tuple[str, ...], vary: Vary, output_dir: Path
) -> Iterator[Point]:
    axes = {**vary, **engine.vary}
    for combination in product(*axes.values()):
        values = dict(zip(axes, combination, strict=True))
        words = ["--backend", engine.backend, *options, *engine.options]
        for name, value in values.items():
            words += _option(name, value)
        label = " ".join([engine.name, *(f"{k}={_text(v)}" for k, v in values.items())])
        args = _parse(words, engine.processes > 0, label)
        folder = output_dir / POINTS / f"{engine.backend}-{args.mode}-{_hash(args, engine)}"
        yield Point(engine, values, tuple(words), args.mode, folder)


def _option(name: str, value: Value) -> list[str]:
    if isinstance(value, bool):
        return [f"--{name}"] if value else []
    return [f"--{name}", str(value)]


def _text(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def _parse(words: Sequence[str], torchrun: bool, label: str) -> argparse.Namespace:
    """The options of a point, as run_mlperf reads them. Raises: UsageError."""
    parser = _Parser(allow_abbrev=False, add_help=False)
    mlperf_run.add_options(parser, torchrun)
    try:
        return parser.parse_args(words)
    except UsageError as error:
        raise UsageError(f"{label}: {error}") from error


def _hash(args: argparse.Namespace, engine: Engine) -> str:
    """Of the effective configuration: options however they are spelled, what is in the files that
    they name, and the versions of the engine's packages.

    Raises: InputFileError for a file that can't be read.
    """
    options = {name: value for name, value in vars(args).items() if name not in PLACES}
    for name in FILES:
        if path := options[name]:
            options[name] = _file_hash(path)
    if (model := Path(args.model)).is_dir():
        options["model"] = model_identity(model)
    configuration = [options, engine.processes, _versions(engine.python)]
    text = json.dumps(configuration, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


@lru_cache
def _file_hash(path: Path) -> str:
    try:
        return sha256(path)
    except OSError as error:
        raise InputFileError(f"{path}: can't be read: {error.strerror}") from error


@lru_cache
def _versions(python: Path) -> dict[str, str]:
    """Of the packages that results depend on, in an interpreter's environment."""
    folders = (python.parent.parent / "lib").glob("python3*/site-packages")
    installed = metadata.distributions(path=[str(folder) for folder in folders])
    return {one.name: one.version for one in installed if one.name in PACKAGES}


def _engine(name: str, content: Any, where: str) -> Engine:
    kinds = {"backend": str, "python": str, "processes": int, "options": list, "vary": dict}
    content = _checked(content, where, kinds)
    backend = content.get("backend", name)
    processes = content.get("processes", 0)
    registry.lookup(backend)
    if processes < 0:
        raise UsageError(f"{where}.processes: {processes} is below 0")
    return Engine(
        name,
        backend,
        Path(content["python"]).absolute() if "python" in content else environment(backend),
        processes,
        _words(content.get("options", []), f"{where}.options"),
        _vary(content.get("vary", {}), f"{where}.vary"),
    )


def environment(backend: str) -> Path:
    """The Python of a backend's environment: the one that setup.sh has made, or else this one.

    Raises: UsageError if there are several.
    """
    made = sorted(launch.ROOT.glob(f".venv-{backend}-*/bin/python"))
    if len(made) > 1:
        raise UsageError(
            f"{backend} has several environments ({', '.join(map(str, made))}): say which one by"
            f' python = "…" under [engines.{backend}] in a file for --config'
        )
    return made[0] if made else Path(sys.executable)


def _checked(content: Any, where: str, kinds: Mapping[str, type]) -> dict[str, Any]:
    """Raises: UsageError for a table with other keys, or values of other types."""
    if not isinstance(content, dict):
        raise UsageError(f"{where}: must be a table, not {content!r}")
    for key, value in content.items():
        if key not in kinds:
            raise UsageError(f"{where}: unknown key {key!r} (known: {', '.join(kinds)})")
        if type(value) is not kinds[key]:
            raise UsageError(f"{where}: {key} must be a {_KINDS[kinds[key]]}, not {value!r}")
    return content


_KINDS = {list: "list", dict: "table", str: "text", int: "whole number"}


def _words(words: list[Any], where: str) -> tuple[str, ...]:
    """Raises: UsageError if these are not texts, or one is an option that the sweep sets."""
    for word in words:
        if not isinstance(word, str):
            raise UsageError(f"{where}: {word!r} must be text, in quotation marks")
        if word.startswith("--"):
            _refuse_ours(word.partition("=")[0].removeprefix("--"), where)
    return tuple(words)


def _vary(vary: dict[str, Any], where: str) -> Vary:
    """Raises: UsageError if an option is the sweep's own, or its values are no list of values."""
    for name, values in vary.items():
        _refuse_ours(name, where)
        if not isinstance(values, list) or not values:
            raise UsageError(f"{where}.{name}: must be a list of values, not {values!r}")
        for value in values:
            if not isinstance(value, str | int | float):
                raise UsageError(
                    f"{where}.{name}: {value!r} is neither text, a number nor a switch"
                )
    return vary


def _refuse_ours(name: str, where: str) -> None:
    if name in OURS:
        raise UsageError(f"{where}: --{name}: leave it out, the sweep sets it for each run")
