import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlperf_loadgen as lg
import pytest

from mlperf import settings
from ref_dsinfer.errors import LoadGenError

ROOT = Path(__file__).parents[2]
FULL = {"rows": 4388, "shortest_limit": 20_000}


def parse(*given: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    settings.add_options(parser)
    parser.add_argument("--num-samples", type=int)
    return parser.parse_args([str(one) for one in given])


def as_the_benchmark(mode: str) -> Any:
    """Settings as FromConfig makes them; it can be called once in a process only."""
    found = lg.TestSettings()
    for key, value in settings.benchmark(settings.MODES[mode]).items():
        attribute, factor = settings._ATTRIBUTES[key]
        kind = type(getattr(found, attribute))
        setattr(found, attribute, kind(value if factor == 1 else value * factor))
    return found


def in_a_process(code: str, *given: object) -> str:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"from tests.mlperf.test_settings import *; {code}",
            *map(str, given),
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
    assert settings.stamps(args, as_the_benchmark(mode), **FULL) == []


@pytest.mark.parametrize("mode", settings.MODES)
def test_loadgen_s_own_settings_carry_no_stamp(mode: str) -> None:
    code = """
args = parse('--mode', sys.argv[1])
print(settings.stamps(args, settings.test_settings(args), **FULL))"""
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
        (reason,) = settings.stamps(parse("--mode", mode), changed, **FULL)
        assert reason.startswith(f"{key} ")


def test_seeds_are_compared_in_all_their_digits() -> None:
    changed = as_the_benchmark("server")
    changed.schedule_rng_seed += 1
    (reason,) = settings.stamps(parse("--mode", "server"), changed, **FULL)
    assert reason == "schedule_rng_seed 16159082839903944937, not 16159082839903944936"


def test_longer_runs_than_the_benchmark_s_carry_no_stamp() -> None:
    changed = as_the_benchmark("offline")
    changed.min_duration_ms += 1
    changed.min_query_count *= 2
    assert settings.stamps(parse(), changed, **FULL) == []


def test_data_answers_and_rate_are_held_too() -> None:
    found = settings.stamps(
        parse("--target-qps", 3), as_the_benchmark("offline"), rows=210, shortest_limit=4000
    )
    assert found == [
        "210 rows, not the benchmark's 4388",
        "answers of at most 4000 tokens, not 20000",
        "--target-qps instead of user.conf's",
    ]


def show(*given: str) -> None:
    made = settings.test_settings(parse(*given))
    print(
        made.scenario.name,
        made.mode.name,
        made.min_duration_ms,
        made.min_query_count,
        made.max_query_count,
        made.offline_expected_qps if made.scenario.name == "Offline" else made.server_target_qps,
    )


@pytest.mark.parametrize(
    ("given", "expected"),
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
def test_options_become_loadgen_s_settings(given: str, expected: str) -> None:
    assert in_a_process("show(*sys.argv[1:])", *given.split()).strip() == expected


def test_settings_are_made_once_in_a_process() -> None:
    code = """
try:
    for _ in range(2): settings.test_settings(parse())
except LoadGenError as error: print(error)"""
    assert "configured before" in in_a_process(code)


def test_a_user_conf_that_can_t_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(LoadGenError, match="no such file"):
        settings.test_settings(parse("--user-conf", tmp_path / "missing.conf"))
    bad = tmp_path / "bad.conf"
    bad.write_text("deepseek-r1.Offline.target_qps = many\n")
    code = """
try: settings.test_settings(parse('--user-conf', sys.argv[1]))
except LoadGenError as error: print(error)"""
    assert str(bad) in in_a_process(code, bad)


@pytest.mark.parametrize(
    "given", ["--target-qps 0", "--target-qps nan", "--min-duration -1", "--min-query-count 0"]
)
def test_bad_values_are_refused(given: str) -> None:
    with pytest.raises(SystemExit):
        parse(*given.split())


def test_an_audit_config_is_never_taken_unasked(
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
