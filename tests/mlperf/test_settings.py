import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlperf_loadgen as lg
import pytest

from errors import LoadGenError
from mlperf import settings

ROOT = Path(__file__).parents[2]
FULL = {"rows": 4388, "shortest_limit": 20_000}


def parse(*words: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    settings.add_options(parser)
    parser.add_argument("--num-samples", type=int)
    parser.add_argument("--skip-samples", type=int, default=0)
    return parser.parse_args([str(one) for one in words])


def as_the_benchmark(mode: str) -> Any:
    """Settings as FromConfig makes them; it can be called once in a process only."""
    requested = lg.TestSettings()
    for key, value in settings.benchmark(settings.MODES[mode]).items():
        attribute, factor = settings._ATTRIBUTES[key]
        kind = type(getattr(requested, attribute))
        setattr(requested, attribute, kind(value if factor == 1 else value * factor))
    return requested


def in_a_process(code: str, *arguments: object) -> str:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"from tests.mlperf.test_settings import *; {code}",
            *map(str, arguments),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


@pytest.mark.parametrize("mode", settings.MODES)
def test_the_benchmark_s_settings_carry_no_stamp(mode: str) -> None:
    args = parse("--mode", mode)
    assert settings.reasons(args, as_the_benchmark(mode), **FULL) == []


@pytest.mark.parametrize("mode", settings.MODES)
def test_loadgen_s_own_settings_carry_no_stamp(mode: str) -> None:
    code = """
args = parse('--mode', sys.argv[1])
print(settings.reasons(args, settings.test_settings(args), **FULL))"""
    assert in_a_process(code, mode) == "[]\n"


@pytest.mark.parametrize("mode", settings.MODES)
def test_every_value_of_the_benchmark_s_file_is_held(mode: str) -> None:
    keys = settings.benchmark(settings.MODES[mode])
    assert len(keys) == (10 if mode == "offline" else 14)
    for key in keys:
        changed = as_the_benchmark(mode)
        attribute, _ = settings._ATTRIBUTES[key]
        value = getattr(changed, attribute)
        other = not value if isinstance(value, bool) else type(value)(value // 2) or 1
        setattr(changed, attribute, other)
        (reason,) = settings.reasons(parse("--mode", mode), changed, **FULL)
        assert reason.startswith(f"{key} ")


@pytest.mark.parametrize(
    "line", ["*.*.min_durations = 1", "*.*.min_duration = 1.5", "min_duration"]
)
def test_a_changed_file_of_the_benchmark_s_is_no_fault_of_ours(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mlperf.conf"
    path.write_text(f"# by hand\n{line}\n")
    monkeypatch.setattr(settings, "BENCHMARK_CONF", path)
    with pytest.raises(LoadGenError, match=r"mlperf.conf: line 2"):
        settings.benchmark(settings.MODES["server"])


def test_seeds_are_compared_in_all_their_digits() -> None:
    changed = as_the_benchmark("server")
    changed.schedule_rng_seed += 1
    (reason,) = settings.reasons(parse("--mode", "server"), changed, **FULL)
    assert reason == "schedule_rng_seed 16159082839903944937, not 16159082839903944936"


def test_longer_runs_than_the_benchmark_s_carry_no_stamp() -> None:
    changed = as_the_benchmark("offline")
    changed.min_duration_ms += 1
    changed.min_query_count *= 2
    assert settings.reasons(parse(), changed, **FULL) == []


def test_data_answers_and_rate_are_held_too() -> None:
    reasons = settings.reasons(
        parse("--target-qps", 3), as_the_benchmark("offline"), rows=210, shortest_limit=4000
    )
    assert reasons == [
        "210 rows, not the benchmark's 4388",
        "answers of at most 4000 tokens, not 20000",
        "--target-qps instead of user.conf's",
    ]


def show(*options: str) -> None:
    made = settings.test_settings(parse(*options))
    print(
        made.scenario.name,
        made.mode.name,
        made.min_duration_ms,
        made.min_query_count,
        made.max_query_count,
        made.offline_expected_qps if made.scenario.name == "Offline" else made.server_target_qps,
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("--mode offline", "Offline PerformanceOnly 600000 4388 0 6.0"),
        ("--mode server", "Server PerformanceOnly 600000 100 0 1.0"),
        ("--mode interactive --accuracy", "Server AccuracyOnly 600000 100 0 0.5"),
        ("--mode server --num-samples 12", "Server PerformanceOnly 0 12 0 1.0"),
        (
            "--num-samples 12 --min-duration 50 --min-query-count 30 --target-qps 2.5",
            "Offline PerformanceOnly 50 30 0 2.5",
        ),
    ],
)
def test_options_become_loadgen_s_settings(options: str, expected: str) -> None:
    assert in_a_process("show(*sys.argv[1:])", *options.split()).strip() == expected


def test_settings_are_made_once_in_a_process() -> None:
    code = """
try:
    for _ in range(2): settings.test_settings(parse())
except LoadGenError as error: print(error)"""
    assert "configured before" in in_a_process(code)


def test_a_user_conf_that_can_t_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(LoadGenError, match=r"missing.conf: can't be read: No such file"):
        settings.test_settings(parse("--user-conf", tmp_path / "missing.conf"))


RATES = {"offline": "deepseek-r1.Offline.target_qps = 40\n", "all": "*.*.target_qps = 3.5\n"}


@pytest.mark.parametrize(
    ("conf", "options", "expected"),
    [
        ("offline", "", "Offline PerformanceOnly 600000 4388 0 40.0"),
        ("offline", "--mode server", "no target rate for --mode server: add the line"),
        ("offline", "--mode interactive", "'deepseek-r1-interactive.Server.target_qps = RATE'"),
        ("offline", "--mode server --accuracy", "no target rate for --mode server"),
        ("offline", "--mode server --target-qps 2", "Server PerformanceOnly 600000 100 0 2.0"),
        ("all", "--mode interactive", "Server PerformanceOnly 600000 100 0 3.5"),
        ("none", "", "no target rate for --mode offline"),
        # which asks for all samples at once
        ("none", "--accuracy", "Offline AccuracyOnly 600000 4388 0 1.0"),
    ],
)
def test_a_mode_without_a_rate_of_its_own_is_refused(
    conf: str, options: str, expected: str, tmp_path: Path
) -> None:
    path = tmp_path / "user.conf"
    path.write_text(RATES.get(conf, ""))
    code = """
try: show(*sys.argv[1:])
except LoadGenError as error: print(error)"""
    assert expected in in_a_process(code, *options.split(), "--user-conf", path)


def test_a_user_conf_that_is_changed_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "user.conf"
    path.write_text(RATES["all"])
    code = """
class Changed(settings.UserConf):
    def settings(self, *run):
        args.user_conf.write_text(sys.argv[2])
        return super().settings(*run)
settings.UserConf = Changed
args = parse('--user-conf', sys.argv[1])
try: settings.test_settings(args)
except LoadGenError as error: print(error)"""
    for later in ("*.*.target_qps = 4.5\n", "*.*.target_qps = many\n"):
        path.write_text(RATES["all"])
        assert f"{path}: LoadGen has read other values: " in in_a_process(code, path, later)


@pytest.mark.parametrize(
    "options",
    [
        *(f"--target-qps {rate}" for rate in ("0", "nan", "inf", "-1", "1e-300", "1e300", "1_000")),
        *("--target-qps ٤", "--target-qps 4,5", "--target-qps 0x10"),
        *("--min-duration -1", "--min-duration 1e3", "--min-duration 1000000000001"),
        *("--min-query-count 0", "--min-query-count 99999999999999999999"),
    ],
)
def test_bad_values_are_refused(options: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(*options.split())
    option, value = options.split()
    last = capsys.readouterr().err.splitlines()[-1]
    assert f"argument {option}: must be " in last
    assert ascii(value) in last


def test_an_audit_config_is_never_used_without_the_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings.refuse_audit()
    (tmp_path / "audit.config").write_text("*.*.mode = 2\n")
    with pytest.raises(LoadGenError, match=str(tmp_path)):
        settings.refuse_audit()


@pytest.mark.parametrize(
    ("qps", "expected"), [(1.0, 4388), (6.6, 4388), (6.7, 8776), (14.0, 13164)]
)
def test_offline_issues_whole_passes(qps: float, expected: int) -> None:
    made = as_the_benchmark("offline")
    made.scenario, made.offline_expected_qps = lg.TestScenario.Offline, qps
    made.mode = lg.TestMode.PerformanceOnly
    assert settings.expected_samples(made, 4388) == expected
    made.mode = lg.TestMode.AccuracyOnly
    assert settings.expected_samples(made, 4388) == 4388


def made(mode: str, /, **changed: object) -> Any:
    """The benchmark's settings with a mode's scenario, some of them changed."""
    requested = as_the_benchmark(mode)
    requested.scenario = getattr(lg.TestScenario, settings.MODES[mode].scenario)
    requested.mode = lg.TestMode.PerformanceOnly
    for name, value in changed.items():
        setattr(requested, name, value)
    return requested


@pytest.mark.parametrize(
    ("mode", "changed"),
    [
        ("server", {"server_target_qps": 1e6}),
        ("offline", {"offline_expected_qps": 1e6}),
        ("server", {"min_query_count": 2**31 - 1}),
        ("offline", {"min_duration_ms": 10**12}),
    ],
)
def test_more_samples_than_memory_has_room_for_are_refused(
    mode: str, changed: dict[str, object]
) -> None:
    settings.check_size(made(mode), 4388)
    with pytest.raises(LoadGenError, match=r"^[\d,]{11,} samples need .* GB are free: lower"):
        settings.check_size(made(mode, **changed), 4388)


def test_what_a_sample_takes_is_held_to_the_memory_that_is_free() -> None:
    free = settings._free_memory()
    assert 1e8 < free < 1e14
    fits = int(free / settings._BYTES_A_SAMPLE * 0.9)  # others use this machine too
    settings.check_size(made("server", min_query_count=fits), 1)
    with pytest.raises(LoadGenError):
        settings.check_size(made("server", min_query_count=fits * 2), 1)


def test_an_account_s_limit_counts_as_memory() -> None:
    code = """
import resource
resource.setrlimit(resource.RLIMIT_AS, (2**31, resource.RLIM_INFINITY))
print(settings._free_memory())"""
    assert int(in_a_process(code)) <= 2**31


def test_a_schedule_that_outlives_everybody_is_refused() -> None:
    slow = made("server", server_target_qps=1e-4)
    settings.check_size(slow, 4388)
    slow.min_query_count = 200_000
    with pytest.raises(LoadGenError, match="samples/s take 23,"):
        settings.check_size(slow, 4388)


@pytest.mark.parametrize(
    ("mode", "options", "message"),
    [
        ("offline", "", "offline, performance: target_qps 1 (%s), 4,388 samples, 600 s or more"),
        ("offline", "--accuracy", "offline, accuracy: 4,388 samples"),
        (
            "interactive",
            "--target-qps 0.5",
            "interactive, performance: target_qps 0.5 (--target-qps), 4,388 samples, 600 s or more,"
            " p99 of TTFT within 1500 ms and of TPOT within 15 ms",
        ),
        ("server", "--accuracy", "server, accuracy: target_qps 1 (%s), 4,388 samples"),
    ],
)
def test_settings_are_described(mode: str, options: str, message: str) -> None:
    args = parse("--mode", mode, *options.split())
    test = lg.TestMode.AccuracyOnly if args.accuracy else lg.TestMode.PerformanceOnly
    rate = args.target_qps or 1.0
    shown = made(mode, mode=test, server_target_qps=rate, offline_expected_qps=rate)
    assert settings.describe(args, shown, 4388) == message.replace("%s", str(settings.USER_CONF))
