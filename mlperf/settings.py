"""LoadGen's settings for a mode, and why a run with these settings can't be submitted."""

import argparse
import contextlib
import os
import resource
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmark import MAX_NEW_TOKENS, ROWS
from errors import LoadGenError, UsageError
from mlperf import mlperf_conf, user_conf
from mlperf.compliance import AUDIT
from mlperf.user_conf import KEYS, UserConf
from ref_dsinfer.rounding import ceil_div

HERE = Path(__file__).parent
BENCHMARK_CONF = HERE / "mlperf.conf"
USER_CONF = HERE / "user.conf"
AUDIT_CONF = Path("audit.config")


@dataclass(frozen=True)
class Mode:
    """LoadGen's names for a value of --mode. They are case-sensitive."""

    model: str
    scenario: str

    @property
    def reads_tokens(self) -> bool:
        """Whether LoadGen expects the first token of each answer."""
        return self.scenario == "Server"

    @property
    def rate(self) -> str:
        """The attribute of TestSettings with the target rate, in samples per second."""
        return "server_target_qps" if self.scenario == "Server" else "offline_expected_qps"

    def needs_rate(self, accuracy: bool) -> bool:
        """Whether the test uses the target rate; in Offline an accuracy run does not."""
        return self.scenario == "Server" or not accuracy


MODES = {
    "offline": Mode("deepseek-r1", "Offline"),
    "server": Mode("deepseek-r1", "Server"),
    "interactive": Mode("deepseek-r1-interactive", "Server"),
}

# The attribute of TestSettings for each key of mlperf.conf, and the factor from the file's unit.
_ATTRIBUTES: dict[str, tuple[str, float]] = {
    **{key.name: (key.attribute, key.factor) for key in KEYS},
    **{seed: (seed, 1) for seed in ("qsl_rng_seed", "sample_index_rng_seed", "schedule_rng_seed")},
}

# The least memory that a sample takes: measured with short answers of the echo engine, with 50,000
# and 200,000 samples. A tenth of it is LoadGen's.
_BYTES_A_SAMPLE = 3500


class _OneMode(argparse.Action):
    """Stores --mode; an error if its other name, --scenario, says something else."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        earlier, mode = getattr(namespace, "mode_option", (option_string, values))
        if earlier != option_string and mode != values:
            parser.error(f"{option_string} {values} contradicts {earlier} {mode}: give one of them")
        namespace.mode, namespace.mode_option = values, (option_string, values)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that set LoadGen's settings."""
    parser.add_argument(
        "--mode",
        "--scenario",
        type=str.lower,
        choices=tuple(MODES),
        default="offline",
        action=_OneMode,
        help="the scenario, in capital or small letters (default: offline)",
    )
    tests = parser.add_mutually_exclusive_group()
    tests.add_argument(
        "--accuracy",
        action="store_true",
        help="accuracy test: answer every sample once and grade the answers",
    )
    tests.add_argument(
        "--find-target-qps",
        action="store_true",
        help="find the highest rate at which a run is likely to be VALID, by short LoadGen tests"
        " (probes) on one started engine, from the target rate on; in offline mode, measure it",
    )
    tests.add_argument(
        "--compliance",
        action="store_true",
        help="compliance test TEST06: log and check the tokens of 100 timed answers",
    )
    parser.add_argument(
        "--user-conf",
        type=Path,
        default=USER_CONF,
        metavar="FILE",
        help="the submitter's LoadGen settings: target rates (default: mlperf/user.conf)",
    )
    parser.add_argument(
        "--mlperf-conf",
        type=Path,
        metavar="FILE",
        help="settings of the benchmark that replace LoadGen's own, which are built in; user.conf"
        " goes before them. Unless they are equal, the result can't be submitted",
    )
    group = parser.add_argument_group(
        "short runs",
        "with one of these, --num-samples or --skip-samples, the result can't be submitted",
    )
    group.add_argument(
        "--target-qps",
        type=option(user_conf.rate),
        metavar="RATE",
        help="target rate in samples/s (default: user.conf's)",
    )
    group.add_argument(
        "--min-duration",
        type=option(user_conf.milliseconds),
        metavar="MS",
        help="minimum duration in milliseconds (default: 600000; with --num-samples: 0)",
    )
    group.add_argument(
        "--min-query-count",
        type=option(user_conf.count),
        metavar="N",
        help="minimum number of samples (default: the benchmark's, in offline mode"
        f" {ROWS}; with --num-samples: that number)",
    )


def test_name(args: argparse.Namespace) -> str:
    """The test that the options select."""
    if args.find_target_qps:
        return "rate"
    if args.compliance:
        return "compliance"
    return "accuracy" if args.accuracy else "performance"


def refuse_audit() -> None:
    """Check that there is no audit.config, which LoadGen would read from the working directory.

    Raises: LoadGenError naming the file.
    """
    if AUDIT_CONF.exists():
        raise LoadGenError(
            f"{AUDIT_CONF.absolute()} is no longer needed and would change this run: remove it, and"
            " pass --compliance for the compliance test"
        )


def loadgen() -> Any:
    """The module mlperf_loadgen, imported here so that `--help` works without it."""
    import mlperf_loadgen

    return mlperf_loadgen


def test_settings(args: argparse.Namespace) -> Any:
    """LoadGen's TestSettings: its own for the mode, changed by user.conf, then by the options.

    LoadGen loads its own settings only into the first TestSettings of a process.

    Raises: LoadGenError if user.conf is missing, has an invalid line or no target rate for the
    mode, or these are not the first TestSettings; UsageError if an option contradicts the test.
    """
    if args.compliance and (args.min_duration, args.min_query_count) != (None, None):
        raise UsageError(
            "--min-duration and --min-query-count: leave them out, as --compliance sets both"
        )
    lg = loadgen()
    mode = MODES[args.mode]
    wanted = read_user_conf(args.user_conf).settings(mode.model, mode.scenario)
    settings = lg.TestSettings()
    failed = settings.FromConfig(os.fsencode(args.user_conf), mode.model, mode.scenario, 1)
    if not settings.qsl_rng_seed:
        raise LoadGenError(
            "LoadGen was configured before in this process: start a new process for each run"
        )
    misread = [
        f"{attribute} is {getattr(settings, attribute)}, not {value}"
        for attribute, value in wanted.items()
        if getattr(settings, attribute) != value
    ]
    if failed or misread:
        raise LoadGenError(
            f"{args.user_conf}: LoadGen has read other values: {'; '.join(misread) or failed}: was"
            " the file changed just now?"
        )
    if args.mlperf_conf:
        mlperf_conf.apply(args.mlperf_conf, mode.model, mode.scenario, settings)
        for attribute, value in wanted.items():
            setattr(settings, attribute, type(getattr(settings, attribute))(value))
    if args.target_qps is None and mode.rate not in wanted and mode.needs_rate(args.accuracy):
        raise LoadGenError(
            f"{args.user_conf}: no target rate for --mode {args.mode}: add the line"
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
    if args.compliance:
        for key, value in AUDIT.items():
            attribute, factor = _ATTRIBUTES[key]
            setattr(settings, attribute, type(getattr(settings, attribute))(value * factor))
    return settings


def read_user_conf(path: Path) -> UserConf:
    """A user.conf of this benchmark. Raises: LoadGenError."""
    return UserConf(path, models())


def benchmark(mode: Mode) -> dict[str, int]:
    """The values of mlperf.conf for a mode, by key, in the file's units.

    Raises: LoadGenError if the file was changed to something else.
    """
    values = {}
    for line in user_conf.read_lines(BENCHMARK_CONF):
        prefix, _, name = line.key.rpartition(".")
        if name not in _ATTRIBUTES or not line.value.isdecimal():
            raise LoadGenError(
                f"{BENCHMARK_CONF}: line {line.number} is not one of the benchmark's settings:"
                " restore this file, which must not be edited"
            )
        if prefix == f"{mode.model}.{mode.scenario}":
            values[name] = int(line.value)
    return values


def reasons(args: argparse.Namespace, settings: Any, rows: int, shortest_limit: int) -> list[str]:
    """Why a run with these settings can't be submitted, whatever its result; empty if it can.

    `rows`: rows of the data set in use. `shortest_limit`: the smallest max_new_tokens of any row.
    """
    differences = []
    mode = MODES[args.mode]
    if args.mlperf_conf and (
        changes := mlperf_conf.changes(args.mlperf_conf, mode.model, mode.scenario)
    ):
        differences.append(f"--mlperf-conf {args.mlperf_conf} sets {', '.join(changes)}")
    if args.skip_samples:
        differences.append(f"the first {args.skip_samples} rows were skipped")
    if rows != ROWS:
        differences.append(f"{rows} rows, not the benchmark's {ROWS}")
    if shortest_limit != MAX_NEW_TOKENS:
        differences.append(f"answers of at most {shortest_limit} tokens, not {MAX_NEW_TOKENS}")
    if args.target_qps is not None:
        differences.append("--target-qps instead of user.conf's")
    audit = AUDIT if args.compliance else {}
    for key, required in (benchmark(mode) | audit).items():
        attribute, factor = _ATTRIBUTES[key]
        # in the file's unit; integers stay exact, as seeds need all their digits
        value = getattr(settings, attribute)
        value = int(value) if factor == 1 else round(value / factor, 6)
        text = f"{value:g}" if isinstance(value, float) else value
        if key.startswith("min_"):
            if value < required:
                differences.append(f"{key} {text}, less than {required}")
        elif value != required:
            differences.append(f"{key} {text}, not {required}")
    return differences


def expected_samples(settings: Any, rows: int) -> int:
    """How many samples LoadGen will issue; in the Server scenario on average."""
    lg = loadgen()
    if settings.mode == lg.TestMode.AccuracyOnly:
        return rows
    seconds = settings.min_duration_ms / 1e3
    if settings.scenario == lg.TestScenario.Offline:
        least = max(settings.min_query_count, int(1.1 * seconds * settings.offline_expected_qps))
    else:
        least = max(settings.min_query_count, round(seconds * settings.server_target_qps))
    if not settings.sample_concatenate_permutation:
        return least
    rows = min(rows, settings.performance_sample_count_override or rows)
    return ceil_div(least, rows) * rows  # whole passes over the data set


def expected_seconds(settings: Any, samples: int, accuracy: bool) -> float | None:
    """How long a test of so many samples takes at the target rate; None if it has none."""
    if settings.scenario == loadgen().TestScenario.Server:
        rate = settings.server_target_qps
    else:
        rate = None if accuracy else settings.offline_expected_qps
    if rate is None:
        return None
    return max(samples / rate, 0 if accuracy else settings.min_duration_ms / 1e3)


def check_size(settings: Any, rows: int) -> None:
    """Check that the samples that LoadGen will issue fit in memory, and take less than 31 years.

    LoadGen creates all samples before it issues the first one, and would use up all memory.

    Raises: LoadGenError naming their number.
    """
    samples = expected_samples(settings, rows)
    free = _free_memory()
    if samples * _BYTES_A_SAMPLE > free:
        raise LoadGenError(
            f"{samples:,} samples need {samples * _BYTES_A_SAMPLE / 1e9:,.1f} GB of memory or more,"
            f" but {free / 1e9:,.1f} GB are free: lower target_qps, min_duration or min_query_count"
        )
    if settings.scenario == loadgen().TestScenario.Server:
        seconds = samples / settings.server_target_qps
        if seconds * 1e3 > user_conf.LONGEST_RUN:
            raise LoadGenError(
                f"{samples:,} samples at {settings.server_target_qps:g} samples/s take"
                f" {seconds / 86400:,.0f} days: raise target_qps"
            )


def describe(args: argparse.Namespace, settings: Any, rows: int) -> str:
    """A run's settings in one line: target rate and its source, samples, durations, limits."""
    mode = MODES[args.mode]
    parts = [f"{expected_samples(settings, rows):,} samples"]
    if mode.needs_rate(args.accuracy):
        source = args.user_conf if args.target_qps is None else "--target-qps"
        parts.insert(0, f"target_qps {getattr(settings, mode.rate):g} ({source})")
    if not args.accuracy:
        parts.append(f"{settings.min_duration_ms / 1e3:g} s or more")
        if settings.max_duration_ms:
            parts.append(f"{settings.max_duration_ms / 1e3:g} s at most")
        if mode.reads_tokens:
            ttft, tpot = settings.ttft_latency / 1e6, settings.tpot_latency / 1e6
            parts.append(f"p99 of TTFT within {ttft:g} ms and of TPOT within {tpot:g} ms")
    return f"{args.mode}, {test_name(args)}: {', '.join(parts)}"


def models() -> dict[str, tuple[str, ...]]:
    """LoadGen's names of the models, and the scenarios that each is run in."""
    scenarios: dict[str, tuple[str, ...]] = {}
    for mode in MODES.values():
        scenarios[mode.model] = (*scenarios.get(mode.model, ()), mode.scenario)
    return scenarios


def _free_memory() -> int:
    """Bytes available within the limits of the machine, the container and the user (ulimit -v)."""
    limits = [
        int(line.split()[1]) * 1024
        for line in Path("/proc/meminfo").read_text().splitlines()
        if line.startswith("MemAvailable:")
    ]
    with contextlib.suppress(OSError, ValueError):  # "max" stands for no limit
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        limits.append(soft)
    return min(limits)


def option(read: Callable[[str], int | float]) -> Callable[[str], int | float]:
    """An argparse type that reports the ValueError of `read`."""

    def parse(text: str) -> int | float:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return parse
