"""The target rate: the highest at which a run is VALID, found by short LoadGen tests (probes).

All probes run on one started engine. In Server and Interactive they have the scenario's own random
arrivals: the rate is doubled or halved until one probe passes and one fails, then bisected, and at
last confirmed or corrected by longer probes. A rate passes only by LoadGen's own figures of a whole
test; a probe that is ended early has failed.
"""

import argparse
import asyncio
import logging
import math
import shutil
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from backends.types import Backend
from errors import LoadGenError, UsageError
from mlperf import early_stopping, report, settings, user_conf
from mlperf.state import RunState
from ref_dsinfer.files import write_json, write_text

if TYPE_CHECKING:
    from data.workload import Workload
    from mlperf.probe import Limits, Probe, Prober

log = logging.getLogger(__name__)

# Probes a rate in samples/s, for so many times the length of a probe.
Measure = Callable[[float, float], Awaitable["Probe"]]

QUERIES = 300  # of a probe, at least: enough for a 99th percentile, of which 2 may be late
FEWEST_QUERIES = 100
TOLERANCE, LEAST_TOLERANCE = 0.02, 0.001
LONGEST_S = 1e6
LOWEST = 1 / 64  # of the rate to start from
CONFIRMATION = 3  # times as long as the other probes
CONFIRMATIONS = 10
TRIALS, TRIAL_TOKENS = 3, 64  # answers one at a time, after one to warm up
OFFLINE_TRIES = 4
RECORD, PROBES = "rate.json", "probes"


@dataclass(frozen=True)
class Found:
    """The outcome of a search."""

    passed: "Probe"  # at the highest rate that passed
    failed: "Probe"  # at the lowest rate that failed


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the rate search."""
    group = parser.add_argument_group("target rate", "with --find-target-qps")
    group.add_argument(
        "--probe-duration",
        type=settings.option(seconds),
        metavar="SECONDS",
        help="time in which a probe's queries arrive (default: 60 times the TTFT limit, or two mean"
        " answers if these take longer; in offline mode a full run)",
    )
    group.add_argument(
        "--probe-queries",
        type=settings.option(user_conf.whole(FEWEST_QUERIES, user_conf.HIGHEST_COUNT)),
        default=QUERIES,
        metavar="N",
        help=f"queries of a probe, at least (default: {QUERIES})",
    )
    group.add_argument(
        "--rate-tolerance",
        type=settings.option(fraction),
        default=TOLERANCE,
        metavar="FRACTION",
        help="stop once the lowest rate that fails is above the highest that passes by no more than"
        f" this share (default: {TOLERANCE:g})",
    )
    group.add_argument(
        "--write-user-conf",
        type=Path,
        metavar="FILE",
        help="write the rate found into this user.conf; its other lines stay, and a new file gets"
        " those of --user-conf",
    )


def seconds(text: str) -> float:
    """Parse a duration. Raises: ValueError."""
    value = user_conf.decimal(text)
    if not 0 < value <= LONGEST_S:
        raise ValueError(f"must be above 0 and at most {LONGEST_S} seconds, not {text!r}")
    return value


def fraction(text: str) -> float:
    """Parse a share. Raises: ValueError."""
    value = user_conf.decimal(text)
    if not LEAST_TOLERANCE <= value < 1:
        raise ValueError(f"must be {LEAST_TOLERANCE} or more and below 1, not {text!r}")
    return value


def check(args: argparse.Namespace) -> None:
    """Check the options, and that --write-user-conf can be written, before anything starts.

    Raises: UsageError, OutputError; LoadGenError if that file exists but is no user.conf.
    """
    from data.results import check_writable

    if not args.find_target_qps:
        used = [option for option in ("probe_duration", "write_user_conf") if getattr(args, option)]
        if used:
            raise UsageError(f"--{used[0].replace('_', '-')} needs --find-target-qps")
    if path := args.write_user_conf:
        if path.exists():
            settings.read_user_conf(path)
        check_writable(path.parent)


def find(
    args: argparse.Namespace,
    backend: Backend,
    workload: "Workload",
    test_settings: Any,
    folder: Path,
    state: RunState,
) -> None:
    """Find the mode's rate on an engine that is started once, print and record it.

    Raises: LoadGenError if no rate can be found, or the probes are too short.
    """
    shutil.rmtree(folder / PROBES, ignore_errors=True)
    (folder / RECORD).unlink(missing_ok=True)
    rate, record = asyncio.run(_run(args, backend, workload, test_settings, folder, state))
    write_json(folder / RECORD, {"mode": args.mode, "target_qps": rate} | record)
    if path := args.write_user_conf:
        mode = settings.MODES[args.mode]
        base = path if path.exists() else args.user_conf
        key = f"{mode.model}.{mode.scenario}.target_qps"
        write_text(path, user_conf.changed(base.read_text(encoding="utf-8"), key, f"{rate:g}"))
        print(f"  {'written to':<12} {path}: {key} = {rate:g}")


async def _run(
    args: argparse.Namespace,
    backend: Backend,
    workload: "Workload",
    test_settings: Any,
    folder: Path,
    state: RunState,
) -> tuple[float, dict[str, Any]]:
    """The rate, and what else is recorded."""
    from backends.drive import running
    from data.workload import compare_tokenizers
    from mlperf.probe import Prober
    from mlperf.qsl import query_sample_library

    mode = settings.MODES[args.mode]
    start = getattr(test_settings, mode.rate)
    with query_sample_library(len(workload)) as library:
        async with running(backend):
            await compare_tokenizers(backend, workload)
            prober = Prober(backend, workload, test_settings, library, folder / PROBES, args, state)
            if mode.reads_tokens:
                await _try_alone(backend, workload, prober.limits)
                table = Table()

                async def measure(rate: float, length: float) -> "Probe":
                    probe = await prober.probe(rate, length)
                    table.add(probe)
                    return probe

                result = await search(measure, start, args.rate_tolerance)
                print(summary(result, prober.limits))
                rate, record = rounded(result.passed.rate), asdict(result)
            else:
                rate = rounded(await _offline(prober, start))
                record = {}
            reuse = await backend.reuse()
    reasons = report.reuse_reasons(reuse, workload.prompts.shared_prefix, prober.answered)
    for reason in reasons:
        log.warning("a run at this rate could not be submitted: %s", reason)
    return rate, record | {"not_submittable_because": reasons}


async def _offline(prober: "Prober", rate: float) -> float:
    """The measured rate, of a test that was long enough.

    Raises: LoadGenError if no test was.
    """
    for _ in range(OFFLINE_TRIES):
        measured, lasted_s, needed_s = await prober.offline(rate)
        print(f"  {measured:.4g} samples/s for {lasted_s:.1f} s", flush=True)
        if lasted_s >= needed_s:
            print(f"  {'target_qps':<12} {rounded(measured):g} samples/s")
            return measured
        rate = measured
    raise LoadGenError(
        f"the last measurement took {lasted_s:.1f} s, less than {needed_s:g} s, although the number"
        " of samples followed the rate: is the engine's speed changing?"
    )


async def _try_alone(backend: Backend, workload: "Workload", limits: "Limits") -> None:
    """Answer a few requests one at a time, at the lowest load there is.

    Raises: LoadGenError if these are too slow already.
    """
    from backends.drive import collect

    ttfts, tpots = [], []
    for number in range(TRIALS + 1):
        request = workload.request(number, number % len(workload))
        tokens = min(TRIAL_TOKENS, request.max_new_tokens)
        start_ns = time.monotonic_ns()
        answer = await collect(backend, request._replace(max_new_tokens=tokens))
        ttfts.append((answer.first_ns - start_ns) / 1e9)
        intervals = max(len(answer.token_ids) - 1, 1)
        tpots.append((answer.last_ns - answer.first_ns) / 1e9 / intervals)
    ttft, tpot = median(ttfts[1:]), median(tpots[1:])  # the first one warms the engine up
    if ttft > limits.ttft_s or tpot > limits.tpot_s:
        raise LoadGenError(
            "no rate is low enough: even of requests one at a time, TTFT is"
            f" {ttft * 1e3:.1f} ms (limit {limits.ttft_s * 1e3:g} ms) and TPOT"
            f" {tpot * 1e3:.2f} ms (limit {limits.tpot_s * 1e3:g} ms)"
        )


async def search(measure: Measure, start: float, tolerance: float) -> Found:
    """The highest rate that passes a long probe, and the lowest that fails, within a tolerance.

    Short probes come close, but are subject to luck, as queues take time to grow. From what they
    find, long probes go up or down in steps of the tolerance.

    Raises: LoadGenError if even a small part of the rate to start from fails, or none is confirmed.
    """
    close = await _bisect(measure, start, tolerance)
    rate = close.passed.rate
    passed = failed = None
    for _ in range(CONFIRMATIONS):
        probe = await measure(rate, CONFIRMATION)
        if probe.passes:
            passed, rate = probe, rate * (1 + tolerance)
        else:
            failed, rate = probe, rate / (1 + tolerance)
        if passed and failed:
            break
    if passed is None:
        assert failed
        raise LoadGenError(
            f"{close.passed.rate:.4g} samples/s passed a short probe, but {failed.rate:.4g} failed"
            f" a long one: {_misses(failed)}: the engine's speed is not steady, or probes need a"
            " longer --probe-duration"
        )
    return Found(passed, failed or close.failed)


async def _bisect(measure: Measure, start: float, tolerance: float) -> Found:
    """What short probes find."""
    rate = start
    passed = failed = None
    while passed is None or failed is None or failed.rate > passed.rate * (1 + tolerance):
        probe = await measure(rate, 1)
        if probe.passes:
            passed = probe
        else:
            failed = probe
        if failed is None:
            rate *= 2
        elif passed is not None:
            rate = math.sqrt(passed.rate * failed.rate)
        elif failed.rate > start * LOWEST:
            rate /= 2
        else:
            raise LoadGenError(
                f"even {failed.rate:g} samples/s is too much: {_misses(failed)}: start from a lower"
                " rate (target_qps in user.conf, or --target-qps), or change the engine's options"
            )
    return Found(passed, failed)


class Table:
    """Prints a line per probe as it ends."""

    HEADS = ("samples/s", "queries", "TTFT p99 ms", "TPOT p99 ms", "late", "P(VALID)")

    def __init__(self) -> None:
        print("".join(f"{head:>13}" for head in self.HEADS), flush=True)

    def add(self, probe: "Probe") -> None:
        """Print a probe."""
        early = "ended early"
        cells = (
            f"{probe.rate:.4g}",
            f"{probe.queries}",
            early if probe.ttft_p99_ms is None else f"{probe.ttft_p99_ms:.1f}",
            early if probe.tpot_p99_ms is None else f"{probe.tpot_p99_ms:.2f}",
            f"{max(probe.late_first, probe.late_tokens)}",
            f"{probe.likelihood:.0%}",
        )
        verdict = "passes" if probe.passes else "fails"
        print("".join(f"{cell:>13}" for cell in cells) + f"  {verdict}", flush=True)


def rounded(rate: float) -> float:
    """A rate rounded down to four digits."""
    unit = 10.0 ** (math.floor(math.log10(rate)) - 3)
    return round(math.floor(rate / unit + 1e-9) * unit, 12)


def summary(result: Found, limits: "Limits") -> str:
    """What the search has found, for people."""
    best, worst = result.passed, result.failed
    ttft, tpot = limits.ttft_s * 1e3, limits.tpot_s * 1e3
    late = max(best.late_first, best.late_tokens)
    needed = early_stopping.queries_needed(late / best.queries)
    allowed = early_stopping.late_allowed(best.run_queries)
    rows = [
        ("target_qps", f"{rounded(best.rate):g} samples/s; {worst.rate:.4g} fails"),
        ("TTFT", f"p99 {best.ttft_p99_ms:.1f} ms (limit {ttft:g} ms)"),
        ("TPOT", f"p99 {best.tpot_p99_ms:.2f} ms (limit {tpot:g} ms)"),
        (
            "a full run",
            f"{best.run_queries} queries in {best.run_queries / best.rate:.0f} s, of which"
            f" {allowed} may be late; VALID with a probability of {best.likelihood:.0%} or more",
        ),
        (
            "queries",
            f"{late} of {best.queries} were late: with this share LoadGen's early stopping needs"
            f" {needed:g} queries or more",
        ),
    ]
    return "\n".join(f"  {name:<12} {text}" for name, text in rows)


def _misses(probe: "Probe") -> str:
    """Why a probe failed, with its figures."""
    if probe.ttft_p99_ms is None:
        return (
            f"{probe.late_first} of {probe.queries} queries had a late first token,"
            f" {probe.late_tokens} late tokens"
        )
    return (
        f"p99 of TTFT is {probe.ttft_p99_ms:.1f} ms, of TPOT {probe.tpot_p99_ms:.2f} ms, and a full"
        f" run is VALID with a probability of {probe.likelihood:.0%}"
    )
