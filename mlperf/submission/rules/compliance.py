"""Rules on TEST06, the benchmark's compliance test."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from errors import GradingError
from grading.accuracy_log import int32_values
from mlperf.submission.findings import Fault
from mlperf.submission.tree import ACCURACY_LOG, VERIFIED, Result, line_with

EOS_ID = 1  # DeepSeek's <｜end▁of▁sentence｜>
PASSES = ("First token check pass", "EOS check pass", "Sample length check pass")
SHOWN = 5  # samples that are named


def verified(result: Result) -> Iterator[Fault]:
    """verify_accuracy.txt says that TEST06 passed; the first token may be skipped in Offline."""
    path = result.test06 / VERIFIED
    if not path.is_file() or not path.stat().st_size:
        return
    lines = [line.strip() for line in path.read_text(errors="replace").splitlines()]
    for name in PASSES:
        accepted = {f"{name}: True"}
        if name == PASSES[0] and result.mode == "offline":
            accepted.add(f"{name}: Skipped")
        if not accepted & set(lines):
            yield Fault(
                path, f"expected a line {' or '.join(sorted(accepted))}", line_with(path, name)
            )


def answers(result: Result) -> Iterator[Fault]:
    """The answers that TEST06 logged pass its three checks, with ids compared as integers."""
    path = result.test06 / "accuracy" / ACCURACY_LOG
    if not path.is_file() or not path.stat().st_size:
        return
    try:
        entries = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        yield Fault(path, "not a complete JSON list: TEST06's log must not be cut")
        return
    if not isinstance(entries, list) or not entries:
        yield Fault(path, "no answers in it")
        return
    faults: dict[str, list[int]] = {}
    for number, entry in enumerate(entries, 1):
        try:
            reasons = _reasons(entry, result.mode != "offline")
        except (GradingError, TypeError, KeyError) as error:
            reasons = [f"not an answer with data and token_count ({error!s})"]
        for reason in reasons:
            faults.setdefault(reason, []).append(number)
    for reason, numbers in faults.items():
        shown = ", ".join(map(str, numbers[:SHOWN])) + (", …" if len(numbers) > SHOWN else "")
        yield Fault(path, f"{reason}: {len(numbers)} of {len(entries)} answers (number {shown})")


def errors(result: Result) -> Iterator[Fault]:
    """LoadGen logged no errors in the compliance run."""
    for text, line in (result.compliance.errors if result.compliance else {}).items():
        yield Fault(result.test06_log, f"LoadGen logged an error: {text}", line)


def _reasons(entry: Any, has_first: bool) -> list[str]:
    """What is wrong with an answer. Raises: GradingError, TypeError or KeyError if it is none."""
    ids = int32_values(entry["data"], "entry").tolist()
    reasons = []
    if entry["token_count"] != len(ids):
        reasons.append("token_count is not the number of ids in data")
    if ids[-2:] == [EOS_ID, EOS_ID]:
        reasons.append("the answer ends with more than one EOS")
    if has_first and not _agree(int32_values(entry["token_data"], "entry").tolist(), ids):
        reasons.append("the first token is not the first id of the answer")
    return reasons


def _agree(first: Sequence[int], ids: Sequence[int]) -> bool:
    return list(first) == list(ids[: len(first)])
