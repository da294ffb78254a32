"""LoadGen's settings for a mode, and what keeps a run from being submitted."""

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backends.options import MAX_NEW_TOKENS, positive_int
from mlperf.figures import ROWS
from ref_dsinfer.errors import LoadGenError

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


MODES = {
    "offline": Mode("deepseek-r1", "Offline"),
    "server": Mode("deepseek-r1", "Server"),
    "interactive": Mode("deepseek-r1-interactive", "Server"),
}

# The attribute of TestSettings for each key of mlperf.conf, and how many of its units are one.
_ATTRIBUTES: dict[str, tuple[str, float]] = {
    "qsl_rng_seed": ("qsl_rng_seed", 1),
    "sample_index_rng_seed": ("sample_index_rng_seed", 1),
    "schedule_rng_seed": ("schedule_rng_seed", 1),
    "performance_sample_count_override": ("performance_sample_count_override", 1),
    "sample_concatenate_permutation": ("sample_concatenate_permutation", 1),
    "use_token_latencies": ("use_token_latencies", 1),
    "min_duration": ("min_duration_ms", 1),
    "max_duration": ("max_duration_ms", 1),
    "min_query_count": ("min_query_count", 1),
    "max_query_count": ("max_query_count", 1),
    "target_latency": ("server_target_latency_ns", 1_000_000),
    "target_latency_percentile": ("server_target_latency_percentile", 0.01),
    "ttft_latency": ("ttft_latency", 1_000_000),
    "tpot_latency": ("tpot_latency", 1_000_000),
}


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
        "--target-qps", type=_positive_float, metavar="RATE", help="samples/s, before user.conf's"
    )
    group.add_argument(
        "--min-duration",
        type=_milliseconds,
        metavar="MS",
        help="milliseconds, as in user.conf (default: 600000; with --num-samples: 0)",
    )
    group.add_argument(
        "--min-query-count",
        type=positive_int,
        metavar="N",
        help="samples (default in offline mode: 4388; with --num-samples: that many)",
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
    """The module mlperf_loadgen. Errors: LoadGenError where it is not installed."""
    try:
        import mlperf_loadgen
    except ModuleNotFoundError as error:
        raise LoadGenError("the Python package mlcommons-loadgen is not installed") from error
    return mlperf_loadgen


def test_settings(args: argparse.Namespace) -> Any:
    """LoadGen's TestSettings of the options: its own for the mode, user.conf's, then the flags'.

    LoadGen reads its own values only for the first settings that a process makes.

    Errors: LoadGenError where user.conf is missing or malformed, or these are not the first.
    """
    lg = loadgen()
    mode = MODES[args.mode]
    if not args.user_conf.is_file() or not os.access(args.user_conf, os.R_OK):
        raise LoadGenError(f"{args.user_conf}: no such file, or not readable (--user-conf)")
    settings = lg.TestSettings()
    if settings.FromConfig(str(args.user_conf), mode.model, mode.scenario, 1):
        raise LoadGenError(f"{args.user_conf}: a line is not 'model.scenario.key = number'")
    if not settings.qsl_rng_seed:
        raise LoadGenError("LoadGen has been configured before in this process")
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
    """The values of mlperf.conf for a mode, by key, in LoadGen's units."""
    values = {}
    for line in BENCHMARK_CONF.read_text().splitlines():
        key, _, value = line.partition("#")[0].partition("=")
        prefix, _, name = key.strip().rpartition(".")
        if prefix == f"{mode.model}.{mode.scenario}":
            values[name] = int(value)
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


def _positive_float(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be above 0, not {text}")
    return value


def _milliseconds(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be 0 or more, not {text}")
    return value
