"""Rules on which files are there and can be read."""

import os
from collections.abc import Iterator
from pathlib import Path

from errors import InputFileError, LoadGenError
from mlperf.report import DETAIL_LOG, MARK, read_detail
from mlperf.submission.findings import Fault
from mlperf.submission.tree import (
    ACCURACY_LOG,
    ACCURACY_TEXT,
    ENDPOINTS_ACCURACY,
    ENDPOINTS_SUMMARY,
    MEASUREMENTS,
    README,
    RELAXATIONS,
    RUNS,
    SUMMARY_LOG,
    USER_CONF,
    VERIFIED,
    Result,
    load_json,
)

LARGEST = 50 * 1024 * 1024  # bytes of a file in a submission


def required(result: Result) -> Iterator[Fault]:
    """Every file that the rules require is there and not empty."""
    for path in _required(result):
        if not path.is_file():
            yield Fault(path, "is missing: every result needs it")
        elif not path.stat().st_size:
            yield Fault(path, "is empty")


def sizes(result: Result) -> Iterator[Fault]:
    """No file is larger than 50 MiB."""
    for folder, _, names in os.walk(result.folder):
        for path in (Path(folder, name) for name in sorted(names)):
            if path.is_file() and path.stat().st_size > LARGEST:
                yield Fault(path, f"has {path.stat().st_size:,} bytes, more than {LARGEST:,}")


def readable(result: Result) -> Iterator[Fault]:
    """LoadGen's logs and JSON files are complete."""
    for path in (
        result.performance_log,
        result.accuracy_folder / DETAIL_LOG,
        result.test06_log,
    ):
        if path.is_file() and path.stat().st_size:
            yield from _log_faults(path)
    for name in (MEASUREMENTS, RUNS, RELAXATIONS):
        path = result.folder / name
        if path.is_file() and path.stat().st_size:
            try:
                load_json(path)
            except InputFileError as error:
                yield Fault(path, str(error).removeprefix(f"{path}: "))


def _log_faults(path: Path) -> Iterator[Fault]:
    try:
        read_detail(path)
    except LoadGenError as error:
        yield Fault(path, str(error).removeprefix(f"{path}: "))
    with path.open("rb") as file:
        if not file.readline().startswith(MARK.encode()):
            yield Fault(path, f"does not begin with {MARK.strip()}: not a detail log", 1)
        file.seek(-1, os.SEEK_END)
        if file.read() != b"\n":
            yield Fault(path, "its last line is incomplete: the run did not end")


def _required(result: Result) -> Iterator[Path]:
    folder, accuracy = result.folder, result.accuracy_folder
    yield folder / MEASUREMENTS
    yield folder / README
    if result.of_endpoints:
        yield result.config
        yield folder / ENDPOINTS_SUMMARY
        yield folder / ENDPOINTS_ACCURACY
        return
    yield folder / USER_CONF
    yield result.performance_log
    yield result.performance_log.with_name(SUMMARY_LOG)
    for name in (DETAIL_LOG, SUMMARY_LOG, ACCURACY_LOG, ACCURACY_TEXT):
        yield accuracy / name
    if result.system.closed:
        yield result.test06 / VERIFIED
        yield result.test06 / "accuracy" / ACCURACY_LOG
