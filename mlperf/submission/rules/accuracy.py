"""Rules on the accuracy run's score and its log."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from benchmark import (
    EXACT_MATCH,
    EXACT_MATCH_MIN,
    POLICY_EXACT_MATCH,
    POLICY_EXACT_MATCH_MIN,
    ROWS,
    TOKENS_MAX,
    TOKENS_MIN,
)
from mlperf.submission.findings import Fault, Level
from mlperf.submission.tree import ACCURACY_LOG, ACCURACY_TEXT, Result
from ref_dsinfer.files import sha256

LOG_SIZE = 10 * 1024  # bytes of the accuracy log in a tree, at most

_FIGURE = re.compile(r"'(exact_match|tokens_per_sample|num-samples)':\s([^,}\s]+)")
_DECIMAL = re.compile(r"\d+(\.\d+)?")
_HASH = re.compile(r"hash=(\S*)")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def score(result: Result) -> Iterator[Fault]:
    """exact_match and tokens_per_sample are within their limits."""
    path = result.accuracy_folder / ACCURACY_TEXT
    lines = _lines(path)
    if not lines:
        return
    figures: dict[str, float] = {}
    for number, line in enumerate(lines, 1):
        for name, text in _FIGURE.findall(line):
            if not _DECIMAL.fullmatch(text):
                yield Fault(path, f"{name} is {text!r}, not a plain decimal number", number)
            elif figures.setdefault(name, float(text)) != float(text):
                yield Fault(path, f"{name} is there a second time, with another value", number)
    for name in ("exact_match", "tokens_per_sample"):
        if name not in figures:
            yield Fault(path, f"no line \"'{name}': NUMBER\", which the official checker reads")
    level: Level = "error" if result.system.closed else "note"  # the open division has no limits
    yield from score_faults(path, figures, level)


def score_faults(path: Path, figures: dict[str, float], level: Level) -> Iterator[Fault]:
    """What is wrong with a score; each figure may be missing."""
    exact_match, tokens = figures.get("exact_match"), figures.get("tokens_per_sample")
    line = line_of_figure(path, "exact_match")
    if exact_match is not None and exact_match < EXACT_MATCH_MIN:
        message = f"exact_match {exact_match:g} is below the limit {EXACT_MATCH_MIN:.6f}"
        yield Fault(path, message, line, level)
    elif exact_match is not None and exact_match < POLICY_EXACT_MATCH_MIN:
        yield Fault(
            path,
            f"exact_match {exact_match:g} reaches the official checker's limit"
            f" {EXACT_MATCH_MIN:.6f} (99 % of {EXACT_MATCH}), but not the one of the rules' text,"
            f" {POLICY_EXACT_MATCH_MIN:.6f} (99 % of {POLICY_EXACT_MATCH})",
            line,
            "note",
        )
    if tokens is not None and not TOKENS_MIN <= tokens <= TOKENS_MAX:
        yield Fault(
            path,
            f"tokens_per_sample {tokens:g} is not within {TOKENS_MIN:.4f} to {TOKENS_MAX:.4f}",
            line_of_figure(path, "tokens_per_sample"),
            level,
        )


def line_of_figure(path: Path, name: str) -> int | None:
    """The line of accuracy.txt with a figure, from 1."""
    return next((n for n, line in enumerate(_lines(path), 1) if f"'{name}':" in line), None)


def graded_rows(result: Result) -> Iterator[Fault]:
    """The score is of all rows."""
    path = result.accuracy_folder / ACCURACY_TEXT
    for number, line in enumerate(_lines(path), 1):
        for name, text in _FIGURE.findall(line):
            if name == "num-samples" and text != str(ROWS):
                yield Fault(path, f"the score is of {text} rows, not of {ROWS}", number)


def log_hash(result: Result) -> Iterator[Fault]:
    """accuracy.txt has the accuracy log's SHA-256, and the log is cut to 10,240 bytes."""
    path, log = result.accuracy_folder / ACCURACY_TEXT, result.accuracy_folder / ACCURACY_LOG
    lines = _lines(path)
    if lines:
        hashes = [(n, match[1]) for n, line in enumerate(lines, 1) if (match := _HASH.match(line))]
        if not hashes:
            yield Fault(path, "no line hash=SHA256 with the hash of the whole accuracy log")
        for number, value in hashes:
            if not _SHA256.fullmatch(value):
                yield Fault(path, f"hash={value!r} is not a SHA-256 in hexadecimal", number)
            elif _whole(log) and value != sha256(log):
                yield Fault(path, "the hash is not that of the accuracy log beside it", number)
    if not log.is_file() or not log.stat().st_size:
        return  # a fault of its own
    if log.stat().st_size > LOG_SIZE:
        message = f"has {log.stat().st_size:,} bytes: it must be cut to {LOG_SIZE:,} or fewer"
        yield Fault(log, message)
    elif not _is_log(log.read_bytes()):
        yield Fault(log, "not the beginning and the end of LoadGen's accuracy log")


def _is_log(content: bytes) -> bool:
    """Whether these can be the ends of a JSON list of answers."""
    text = content.strip()
    return text.startswith(b"[") and text.endswith(b"]") and b'"qsl_idx"' in text


def _whole(log: Path) -> bool:
    """Whether a log is short enough to be in the tree uncut."""
    try:
        return log.stat().st_size <= LOG_SIZE and isinstance(json.loads(log.read_bytes()), list)
    except (OSError, ValueError, RecursionError):
        return False


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []
