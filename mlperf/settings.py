"""LoadGen's settings for a mode, and what keeps a run from being submitted."""

import argparse
import contextlib
import os
import resource
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmark import MAX_NEW_TOKENS, ROWS
from errors import LoadGenError
from mlperf import user_conf
from mlperf.user_conf import KEYS, UserConf

HERE = Path(__file__).parent
BENCHMARK_CONF = HERE / "mlperf.conf"
USER_CONF = HERE / "user.conf"
AUDIT_CONF = Path("audit.config")


@dataclass(frozen=True)
class Mode:
    """What a user calls a mode, in LoadGen's words. LoadGen matches them by case."""

    model: str
    scenario: str

    @property
    def reads_tokens(self) -> bool:
        """Whether LoadGen wants the first token of each answer."""
        return self.scenario == "Server"

    @property
    def rate(self) -> str:
        """The attribute of TestSettings that holds its samples per second."""
        return "server_target_qps" if self.scenario == "Server" else "offline_expected_qps"

    def needs_rate(self, accuracy: bool) -> bool:
        """Whether the test goes by it: all samples of an Offline accuracy run come at once."""
        return self.scenario == "Server" or not accuracy


MODES = {
    "offline": Mode("deepseek-r1", "Offline"),
    "server": Mode("deepseek-r1", "Server"),
    "interactive": Mode("deepseek-r1-interactive", "Server"),
}

# The attribute of TestSettings for each key of mlperf.conf, and how many of its units are one.
_ATTRIBUTES: dict[str, tuple[str, float]] = {
    **{key.name: (key.attribute, key.factor) for key in KEYS},
    **{seed: (seed, 1) for seed in ("qsl_rng_seed", "sample_index_rng_seed", "schedule_rng_seed")},
}

# What a sample takes of memory at least: its answer of few tokens in the queue of the echo engine
# and among the results (of 50,000 and of 200,000 samples), of which LoadGen has a tenth.
_BYTES_A_SAMPLE = 3500


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of LoadGen's settings."""
    parser.add_argument("--mode", choices=tuple(MODES), default="offline", help="default: offline")
    parser.add_argument(
        "--accuracy",
        action="store_true",
        help="answer every sample once and grade the answers, instead of measuring performance",
    )
    parser.add_argument(
        "--user-conf",
        type=Path,
        default=USER_CONF,
        metavar="FILE",
        help="the submitter's LoadGen settings, target_qps above all (default: mlperf/user.conf)",
    )
    group = parser.add_argument_group(
        "short runs", "each of these, and --num-samples, makes a result that can't be submitted"
    )
    group.add_argument(
        "--target-qps",
        type=_option(user_conf.rate),
        metavar="RATE",
        help="samples/s, before user.conf's",
    )
    group.add_argument(
        "--min-duration",
        type=_option(user_conf.milliseconds),
        metavar="MS",
        help="milliseconds, as in user.conf (default: 600000; with --num-samples: 0)",
    )
    group.add_argument(
        "--min-query-count",
        type=_option(user_conf.count),
        metavar="N",
        help=f"samples (default in offline mode: {ROWS}; with --num-samples: that many)",
    )


def refuse_audit() -> None:
    """LoadGen would take its settings from an audit.config in the working directory, unasked.

    Errors: LoadGenError naming the file.
    """
    if AUDIT_CONF.exists():
        raise LoadGenError(
            f"{AUDIT_CONF.absolute()} would turn this into a compliance run: move it away"
        )


def loadgen() -> Any:
    """The module mlperf_loadgen, which only runs need and `--help` does not."""
    import mlperf_loadgen

    return mlperf_loadgen


def test_settings(args: argparse.Namespace) -> Any:
    """LoadGen's TestSettings of the options: its own for the mode, user.conf's, then the flags'.

    LoadGen reads its own values only for the first settings that a process makes.

    Errors: LoadGenError where user.conf is missing, has a line that is wrong or no rate for the
    mode, or these are not the first.
    """
    lg = loadgen()
    mode = MODES[args.mode]
    wanted = UserConf(args.user_conf, _models()).settings(mode.model, mode.scenario)
    settings = lg.TestSettings()
    failed = settings.FromConfig(os.fsencode(args.user_conf), mode.model, mode.scenario, 1)
    if not settings.qsl_rng_seed:
        raise LoadGenError("LoadGen has been configured before in this process")
    misread = [
        f"{attribute} is {getattr(settings, attribute)}, not {value}"
        for attribute, value in wanted.items()
        if getattr(settings, attribute) != value
    ]
    if failed or misread:
        raise LoadGenError(
            f"{args.user_conf}: LoadGen has read it otherwise: {'; '.join(misread) or failed}; was"
            " it changed just now?"
        )
    if args.target_qps is None and mode.rate not in wanted and mode.needs_rate(args.accuracy):
        raise LoadGenError(
            f"{args.user_conf}: no rate for --mode {args.mode}: add the line"
            f" '{mode.model}.{mode.scenario}.target_qps = RATE', in samples/s, or pass --target-qps"
        )
    settings.scenario = getattr(lg.TestScenario, mode.scenario)
    settings.mode = lg.TestMode.AccuracyOnly if args.accuracy else lg.TestMode.PerformanceOnly

    if args.num_samples is not None:
        settings.min_duration_ms, settings.min_query_count = 0, args.num_samples
    if args.min_duration is not None:
        settings.min_duration_ms = args.min_duration
    if args.min_query_count is not None:
        settings.min_query_count = args.min_query_count
    if args.target_qps is not None:
        settings.server_target_qps = settings.offline_expected_qps = args.target_qps
    return settings


def benchmark(mode: Mode) -> dict[str, int]:
    """The values of mlperf.conf for a mode, by key, in LoadGen's units.

    Errors: LoadGenError where the file is not as it was.
    """
    values = {}
    for line in user_conf.read_lines(BENCHMARK_CONF):
        prefix, _, name = line.key.rpartition(".")
        if name not in _ATTRIBUTES or not line.value.isdecimal():
            raise LoadGenError(
                f"{BENCHMARK_CONF}: line {line.number} is not one of the benchmark's settings: this"
                " file belongs to the tree and is not to be changed"
            )
        if prefix == f"{mode.model}.{mode.scenario}":
            values[name] = int(line.value)
    return values


def stamps(args: argparse.Namespace, settings: Any, rows: int, shortest_limit: int) -> list[str]:
    """Why a result of these settings can't be submitted, whatever it will be; empty if it can.

    `rows` of the data set are used, and some answer is held to `shortest_limit` tokens.
    """
    reasons = []
    if rows != ROWS:
        reasons.append(f"{rows} rows, not the benchmark's {ROWS}")
    if shortest_limit != MAX_NEW_TOKENS:
        reasons.append(f"answers of at most {shortest_limit} tokens, not {MAX_NEW_TOKENS}")
    if args.target_qps is not None:
        reasons.append("--target-qps instead of user.conf's")
    for key, wanted in benchmark(MODES[args.mode]).items():
        attribute, factor = _ATTRIBUTES[key]
        # back in the file's unit; whole numbers stay exact, as seeds need all their digits
        found = getattr(settings, attribute)
        found = int(found) if factor == 1 else round(found / factor, 6)
        shown = f"{found:g}" if isinstance(found, float) else found
        if key.startswith("min_"):
            if found < wanted:
                reasons.append(f"{key} {shown}, less than {wanted}")
        elif found != wanted:
            reasons.append(f"{key} {shown}, not {wanted}")
    return reasons


def expected_samples(settings: Any, rows: int) -> int:
    """How many samples LoadGen will issue: in the Server scenario more or less, at random."""
    lg = loadgen()
    if settings.mode == lg.TestMode.AccuracyOnly:
        return rows
    seconds = settings.min_duration_ms / 1e3
    if settings.scenario == lg.TestScenario.Offline:
        least = max(settings.min_query_count, int(1.1 * seconds * settings.offline_expected_qps))
    else:
        least = max(settings.min_query_count, round(seconds * settings.server_target_qps))
    rows = min(rows, settings.performance_sample_count_override or rows)
    return -(-least // rows) * rows  # whole passes


def check_size(settings: Any, rows: int) -> None:
    """Hold the samples that LoadGen will issue to this machine's memory, and to its clock.

    Errors: LoadGenError naming their number; LoadGen would fill all memory before the first.
    """
    samples = expected_samples(settings, rows)
    free = _free_memory()
    if samples * _BYTES_A_SAMPLE > free:
        raise LoadGenError(
            f"{samples:,} samples, {samples * _BYTES_A_SAMPLE / 1e9:,.1f} GB at least, while"
            f" {free / 1e9:,.1f} GB of memory are free: lower target_qps, min_duration or"
            " min_query_count"
        )
    if settings.scenario == loadgen().TestScenario.Server:
        seconds = samples / settings.server_target_qps
        if seconds * 1e3 > user_conf.LONGEST_RUN:
            raise LoadGenError(
                f"{samples:,} samples at {settings.server_target_qps:g} samples/s take"
                f" {seconds / 86400:,.0f} days: raise target_qps"
            )


def in_words(args: argparse.Namespace, settings: Any, rows: int) -> str:
    """A run's settings as a line: rate and where it is from, samples, durations, limits."""
    mode = MODES[args.mode]
    words = [f"{expected_samples(settings, rows):,} samples"]
    if mode.needs_rate(args.accuracy):
        source = args.user_conf if args.target_qps is None else "--target-qps"
        words.insert(0, f"target_qps {getattr(settings, mode.rate):g} ({source})")
    if not args.accuracy:
        words.append(f"{settings.min_duration_ms / 1e3:g} s or more")
        if settings.max_duration_ms:
            words.append(f"{settings.max_duration_ms / 1e3:g} s at most")
        if mode.reads_tokens:
            ttft, tpot = settings.ttft_latency / 1e6, settings.tpot_latency / 1e6
            words.append(f"p99 of TTFT within {ttft:g} ms and of TPOT within {tpot:g} ms")
    return f"{args.mode}, {'accuracy' if args.accuracy else 'performance'}: {', '.join(words)}"


def _models() -> dict[str, tuple[str, ...]]:
    """LoadGen's names of the models, and the scenarios that a run of each may have."""
    found: dict[str, tuple[str, ...]] = {}
    for mode in MODES.values():
        found[mode.model] = (*found.get(mode.model, ()), mode.scenario)
    return found


def _free_memory() -> int:
    """Bytes that are to be had before machine, container or account (ulimit -v) has none left."""
    limits = [
        int(line.split()[1]) * 1024
        for line in Path("/proc/meminfo").read_text().splitlines()
        if line.startswith("MemAvailable:")
    ]
    with contextlib.suppress(OSError, ValueError):  # no limit is the word "max"
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        limits.append(soft)
    return min(limits)


def _option(read: Callable[[str], int | float]) -> Callable[[str], int | float]:
    """An argparse type that says what `read` finds wrong."""

    def parse(text: str) -> int | float:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return parse
