"""Rules on TEST06, the benchmark's compliance test."""

from collections.abc import Iterator

from errors import GradingError, InputFileError, LoadGenError
from mlperf import compliance
from mlperf.submission.findings import Fault
from mlperf.submission.tree import ACCURACY_LOG, VERIFIED, Result, line_with

EOS_ID = 1  # DeepSeek's <｜end▁of▁sentence｜>
PASSES = ("First token check pass", "EOS check pass", "Sample length check pass")


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
        verification = compliance.verify(path, EOS_ID, result.mode != "offline")
    except (InputFileError, GradingError, LoadGenError) as error:
        yield Fault(path, f"not the log of {compliance.NAME}: {error}")
        return
    for reason in verification.faults:
        yield Fault(path, reason)


def errors(result: Result) -> Iterator[Fault]:
    """LoadGen logged no errors in the compliance run."""
    for text, line in (result.compliance.errors if result.compliance else {}).items():
        yield Fault(result.test06_log, f"LoadGen logged an error: {text}", line)
