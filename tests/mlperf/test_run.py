"""Complete runs, each in a process of its own, as users start them."""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest

from data.journal import read_journal
from data.recorder import TIMELINE
from data.timeline import read_timeline
from mlperf.report import read_detail
from mlperf.run import JOURNAL
from mlperf.settings import BENCHMARK_CONF
from tests.timelines import check_timeline

if TYPE_CHECKING:
    from tests.conftest import Script

ROWS = 4388
MS = 1_000_000  # nanoseconds
RULES = {  # round v6.1
    "effective_qsl_rng_seed": 2085463073848966840,
    "effective_sample_index_rng_seed": 2747215439041700203,
    "effective_schedule_rng_seed": 16159082839903944936,
    "effective_performance_sample_count": ROWS,
    "effective_sample_concatenate_permutation": True,
    "effective_min_duration_ms": 600_000,
    "effective_max_duration_ms": 0,
    "effective_max_query_count": 0,
    "requested_use_token_latencies": True,
}
MODES: dict[str, dict[str, Any]] = {
    "offline": RULES
    | {
        "effective_scenario": "Offline",
        "requested_min_query_count": ROWS,
        "effective_samples_per_query": ROWS,
    },
    "server": RULES
    | {
        "effective_scenario": "Server",
        "effective_target_latency_ns": 0,
        "effective_target_latency_percentile": 0.99,
        "requested_server_ttft_latency": 2000 * MS,
        "requested_server_tpot_latency": 80 * MS,
    },
    "interactive": RULES
    | {
        "effective_scenario": "Server",
        "effective_target_latency_ns": 0,
        "effective_target_latency_percentile": 0.99,
        "requested_server_ttft_latency": 1500 * MS,
        "requested_server_tpot_latency": 15 * MS,
    },
}


def until(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    """Wait until something is so, at most two minutes, while a process runs."""
    end = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "it has not come to this"
        time.sleep(0.05)


def interrupt(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Ctrl-C; the process must end soon. Returns exit code and stderr."""
    process.send_signal(signal.SIGINT)
    try:
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, err


def assert_state(
    results: Path, state: str, finished: int, of: int, error: str | None = None
) -> None:
    content = json.loads((results / "state.json").read_text())
    wanted = {"state": state, "finished": finished, "of": of, "error": error}
    assert {key: content[key] for key in wanted} == wanted


def first_words(results: Path) -> str:
    """What the report of a run says first."""
    (words,) = re.findall(r'<p class="word">(.*)</p>', (results / "report.html").read_text())
    return str(words)


def folder(script: "Script", mode: str, test: str = "performance") -> Path:
    return script.folder / "mlperf_results" / mode / test


def settings_of(run_folder: Path, mode: str) -> dict[str, Any]:
    values = read_detail(run_folder / "mlperf_log_detail.txt").values
    return {key: values.get(key) for key in MODES[mode]}


@pytest.mark.slow
def test_a_full_offline_run_has_the_rules_settings_and_fails_as_invalid(
    script: "Script", benchmark_set: Path
) -> None:
    # the echo engine is done long before the 600 s that a valid run takes
    code, out, err = script.run("run_mlperf.py", "--input-file", benchmark_set)
    assert code == 14, err
    assert "error: INVALID: Increase expected QPS" in err
    assert "no, because INVALID" in out
    results = folder(script, "offline")
    assert settings_of(results, "offline") == MODES["offline"]
    record = json.loads((results / "run.json").read_text())
    assert len(record["not_submittable_because"]) == 1
    assert len(pd.read_parquet(results / "results.parquet")) == ROWS


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["server", "interactive"])
def test_a_full_run_has_the_rules_settings_and_ends_by_an_interrupt(
    script: "Script", benchmark_set: Path, mode: str
) -> None:
    process = script.start("run_mlperf.py", "--mode", mode, "--input-file", benchmark_set)
    results = folder(script, mode)
    log, journal = results / "mlperf_log_detail.txt", results / JOURNAL
    until(lambda: log.exists() and "generated_query_count" in log.read_text(), process)
    until(lambda: journal.exists() and journal.stat().st_size, process)
    code, err = interrupt(process)
    assert code == 130
    assert "can't be submitted" not in err
    assert settings_of(results, mode) == MODES[mode]
    assert read_journal(journal)


def test_the_benchmark_s_file_agrees_with_the_rules() -> None:
    text = BENCHMARK_CONF.read_text()
    values = dict(re.findall(r"^(deepseek-r1\S*) = (\d+)$", text, re.MULTILINE))
    prefixes = {
        "offline": "deepseek-r1.Offline",
        "server": "deepseek-r1.Server",
        "interactive": "deepseek-r1-interactive.Server",
    }
    for mode, prefix in prefixes.items():
        rules = MODES[mode]
        for key in ("qsl_rng_seed", "sample_index_rng_seed", "schedule_rng_seed"):
            assert int(values[f"{prefix}.{key}"]) == rules[f"effective_{key}"]
        assert int(values[f"{prefix}.min_duration"]) == rules["effective_min_duration_ms"]
        assert int(values[f"{prefix}.performance_sample_count_override"]) == ROWS
        for key in ("ttft", "tpot"):
            limit = rules.get(f"requested_server_{key}_latency")
            latency = values.get(f"{prefix}.{key}_latency")
            assert (latency and int(latency) * MS) == limit
    assert values["deepseek-r1.Offline.min_query_count"] == str(ROWS)


SHORT = ("--num-samples", 8, "--target-qps", 100)


@pytest.mark.parametrize("mode", MODES)
def test_a_short_run_succeeds_and_is_stamped(
    script: "Script", data_set: Callable[[int], Path], mode: str
) -> None:
    code, out, err = script.run(
        *("run_mlperf.py", "--mode", mode, "--input-file", data_set(20), *SHORT),
        *("--engine-arg", "first_token_ms=20", "--trace"),
    )
    assert code == 0, err
    assert ("TTFT" in out) == ("TPOT" in out) == (mode != "offline")
    assert "8 rows, not the benchmark's 4388" in out
    assert "this run can't be submitted: 8 rows" in err
    results = folder(script, mode)
    match = re.search(r"performance: target_qps (\d+) \(--target-qps\), ([\d,]+) samples", err)
    assert match
    assert match.groups() == ("100", "8")
    record = json.loads((results / "run.json").read_text())
    assert record["submittable"] is False
    assert {reason.split()[0] for reason in record["not_submittable_because"]} >= {
        *("8", "--target-qps", "min_duration", "min_query_count")
    }
    assert record["figures"]["tokens_per_second"] > 0
    assert record["settings"]["min_duration_ms"] == 0
    assert record["settings"]["target_qps"] == 100
    assert record["versions"]["loadgen"]
    timeline = check_timeline(results)
    assert (timeline.metadata.scenario, timeline.metadata.mode) == (mode, "performance")
    assert timeline.requests["endpoint"].isna().all()
    first_s = timeline.requests["first_token_s"] - timeline.requests["arrival_s"]
    assert (first_s.dropna() >= 0.02).all()
    events = json.loads((results / "trace.json").read_text())["traceEvents"]
    assert sum(event["ph"] == "b" for event in events) == (8 if mode == "offline" else 3 * 8)
    frame = pd.read_parquet(results / "results.parquet")
    assert list(frame["sample_index"]) == list(range(8))
    assert frame["query_id"].is_unique
    assert_state(results, "done", 8, 8)


def test_an_accuracy_run_is_graded_and_its_log_holds_the_answers(
    script: "Script", data_set: Callable[[int], Path]
) -> None:
    code, out, err = script.run("run_mlperf.py", "--accuracy", "--input-file", data_set(12))
    assert code == 0, err
    results = folder(script, "offline", "accuracy")
    assert re.search(r"^\{'exact_match': [\d.]+, 'tokens_per_sample': [\d.]+, ", out, re.MULTILINE)
    assert "'exact_match': " in (results / "accuracy.txt").read_text()
    report = json.loads((results / "results_report.json").read_text())
    assert (report["rows"], report["expected_rows"]) == (12, 12)
    assert len((results / "results_grades.jsonl").read_text().splitlines()) == 12
    frame = pd.read_parquet(results / "results.parquet").set_index("sample_index")
    logged = json.loads((results / "mlperf_log_accuracy.json").read_text())
    assert len(logged) == 12
    for entry in logged:
        data = bytes.fromhex(entry["data"])
        ids = [int.from_bytes(data[at : at + 4], "little") for at in range(0, len(data), 4)]
        assert ids == list(frame.loc[entry["qsl_idx"], "tok_model_output"])


@pytest.mark.slow
def test_an_accuracy_run_is_resumed_where_it_failed(
    script: "Script", data_set: Callable[[int], Path]
) -> None:
    options = ("--accuracy", "--input-file", data_set(12))
    whole = ("run_mlperf.py", *options, "--output-dir", "whole")
    assert script.run(*whole)[0] == 0
    code, _, err = script.run("run_mlperf.py", *options, "--engine-arg", "fail_at=8")
    assert code == 12, err
    results = folder(script, "offline", "accuracy")
    kept = dict(read_journal(results / JOURNAL))
    count = len(kept)
    assert 7 <= count < 12
    # the rows that are left do not reach the request that would fail
    fail_at = f"fail_at={13 - count}"
    code, out, err = script.run("run_mlperf.py", *options, "--resume", "--engine-arg", fail_at)
    assert code == 0, err
    assert f"{count} answers kept" in err
    assert "no, because 12 rows, not the benchmark's 4388" in out
    assert f"and resumed: {count} samples were answered by an earlier run" in out
    assert json.loads((results / "run.json").read_text())["resumed"] == {"samples": count, "of": 12}
    assert f"<p>Resumed: {count} of 12 samples" in (results / "report.html").read_text()
    journal = dict(read_journal(results / JOURNAL))
    assert {index: journal[index] for index in kept} == kept
    assert_same_results(results, script.folder / "whole" / "offline" / "accuracy")

    # a finished run is resumed to the same, and asks the engine for nothing
    code, _, err = script.run("run_mlperf.py", *options, "--resume", "--engine-arg", "fail_at=1")
    assert code == 0, err
    assert_same_results(results, script.folder / "whole" / "offline" / "accuracy")
    record = json.loads((results / "run.json").read_text())
    assert record["figures"]["tokens_per_second"] == 0

    for changes, name in (
        (("--num-samples", 5), "the number of rows was 12 and is 5"),
        (("--mode", "server"), "--mode was 'offline' and is 'server'"),
        (("--seed", 7), "the seed was 0 and is 7"),
    ):
        server = script.folder / "mlperf_results" / "server" / "accuracy"
        server.mkdir(parents=True, exist_ok=True)
        (server / JOURNAL).write_bytes((results / JOURNAL).read_bytes())
        before = (results / JOURNAL).read_bytes()
        code, _, err = script.run("run_mlperf.py", *options, "--resume", *changes)
        assert code == 3
        assert name in err.splitlines()[-1]
        assert (results / JOURNAL).read_bytes() == before
    code, _, err = script.run("run_mlperf.py", *options[1:], "--resume")
    assert code == 2
    assert "--resume needs --accuracy" in err.splitlines()[-1]


def assert_same_results(results: Path, whole: Path) -> None:
    """Two runs have the same answers in the same order, in all their files."""
    ours, theirs = (
        pd.read_parquet(one / "results_evaluated.parquet").drop(columns="query_id")
        for one in (results, whole)
    )
    pd.testing.assert_frame_equal(ours, theirs)
    our_answers, their_answers = (
        {
            entry["qsl_idx"]: (entry["data"], entry["token_count"])
            for entry in json.loads((one / "mlperf_log_accuracy.json").read_text())
        }
        for one in (results, whole)
    )
    assert our_answers == their_answers
    assert (results / "accuracy.txt").read_text().split("hash")[0] == (
        (whole / "accuracy.txt").read_text().split("hash")[0]
    )


@pytest.mark.slow
def test_an_unfinished_accuracy_run_is_set_aside(
    script: "Script", data_set: Callable[[int], Path]
) -> None:
    options = ("run_mlperf.py", "--accuracy", "--input-file", data_set(5))
    results = folder(script, "offline", "accuracy")
    old = results / f"{JOURNAL}.old"
    assert script.run(*options, "--engine-arg", "fail_at=4")[0] == 12
    assert script.run(*options, "--engine-arg", "fail_start=1")[0] == 12
    kept = read_journal(old)
    assert kept
    assert script.run(*options, "--engine-arg", "fail_start=1")[0] == 12  # it had no answer
    assert read_journal(old) == kept
    code, _, err = script.run(*options)
    assert code == 0, err
    assert f"its answers are now in {old}" not in err
    assert script.run(*options)[0] == 0  # a finished run is replaced
    assert read_journal(old) == kept


@pytest.mark.slow
def test_the_engine_is_closed_before_grading_starts(
    echo_model: Path, data_set: Callable[[int], Path], tmp_path: Path
) -> None:
    script = """
import sys
import backends.echo, mlperf.run, run_mlperf
close, grade = backends.echo.EchoEngine.close, mlperf.run.evaluate_and_report
async def closing(self):
    await close(self)
    print("closed")
def grading(*arguments):
    print("grading")
    return grade(*arguments)
backends.echo.EchoEngine.close, mlperf.run.evaluate_and_report = closing, grading
run_mlperf.main()
"""
    options = (
        "--backend",
        "echo",
        "--model",
        echo_model,
        "--input-file",
        data_set(5),
        "--accuracy",
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, *map(str, options), "--output-dir", str(tmp_path)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert [line for line in lines if line in ("closed", "grading")] == ["closed", "grading"]


def test_a_failing_request_ends_the_run_and_leaves_the_others(
    script: "Script", data_set: Callable[[int], Path]
) -> None:
    code, _, err = script.run(
        *("run_mlperf.py", "--mode", "server", "--input-file", data_set(20), *SHORT),
        *("--min-query-count", 200, "--engine-arg", "fail_at=7"),
    )
    assert code == 12
    assert err.splitlines()[-1] == "error: echo: told to fail at request 7"
    assert_state(folder(script, "server"), "failed", 6, 200, "echo: told to fail at request 7")
    assert first_words(folder(script, "server")) == "Failed"
    assert "Traceback" not in err
    assert len(read_journal(folder(script, "server") / JOURNAL)) == 6
    ends = read_timeline(folder(script, "server") / TIMELINE).requests["finish_s"]
    assert ends.notna().sum() == 6
    assert ends.isna().sum() >= 1


def test_an_engine_that_does_not_start_ends_the_run(
    script: "Script", data_set: Callable[[int], Path]
) -> None:
    code, _, err = script.run(
        "run_mlperf.py", "--input-file", data_set(5), "--engine-arg", "fail_start=1"
    )
    assert code == 12
    assert "Traceback" not in err


@pytest.mark.slow
def test_an_interrupt_ends_a_run_that_waits_and_leaves_what_is_finished(
    script: "Script", data_set: Callable[[int], Path]
) -> None:
    process = script.start(
        "run_mlperf.py", "--input-file", data_set(20), *SHORT, "--engine-arg", "hang_at=3"
    )
    journal = folder(script, "offline") / JOURNAL
    until(lambda: journal.exists() and len(read_journal(journal)) == 7, process)
    state = journal.with_name("state.json")
    until(lambda: json.loads(state.read_text())["finished"] == 7, process)
    assert_state(folder(script, "offline"), "running", 7, 8)
    assert json.loads(state.read_text())["pid"] == process.pid
    second, _, stderr = script.run(
        "run_mlperf.py", "--input-file", script.folder / "rows20.parquet"
    )
    assert second == 11
    assert f"offline/performance: process {process.pid} on " in stderr.splitlines()[-1]
    code, err = interrupt(process)
    assert code == 130
    assert_state(folder(script, "offline"), "failed", 7, 8, "interrupted")
    assert first_words(folder(script, "offline")) == "Interrupted"
    assert "Traceback" not in err
    assert len(read_journal(journal)) == 7


@pytest.fixture
def bad_inputs(
    script: "Script", data_set: Callable[[int], Path], tmp_path: Path
) -> Iterator[tuple["Script", Path]]:
    (tmp_path / "a_file").write_text("")
    (tmp_path / "a_folder").mkdir()
    (tmp_path / "zero.conf").write_text("deepseek-r1.Server.target_qps = 0\n")
    yield script, data_set(3)
    assert not list(tmp_path.rglob("mlperf_log_*"))  # found before anything started


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--output-dir", "a_file"), 11, "a_file"),
        (("--user-conf", "missing.conf"), 14, "missing.conf"),
        (("--user-conf", "a_folder"), 14, "a_folder: can't be read: Is a directory"),
        (("--user-conf", "a_file"), 14, "no target rate for --mode offline"),
        (("--user-conf", "zero.conf", "--mode", "server"), 14, "zero.conf: line 1: "),
        (("--target-qps", "1e6"), 14, " samples need "),
        (("--engine-arg", "speed=9"), 2, "'speed'"),
        (("--max-model-len", "13"), 8, "row 0"),
        (("--max-model-len", "999999"), 8, "999999"),
        (("--accuracy", "--livecodebench-file", "none.jsonl"), 13, "none.jsonl"),
    ],
)
def test_bad_input_is_one_line_before_anything_starts(
    bad_inputs: tuple["Script", Path], options: tuple[str, ...], code: int, message: str
) -> None:
    script, rows = bad_inputs
    status, out, err = script.run("run_mlperf.py", "--input-file", rows, *options)
    assert (status, out) == (code, ""), err
    last = err.splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last
    assert "Traceback" not in err


@pytest.mark.parametrize("content", ["", "version https://git-lfs.github.com/spec/v1\n"])
def test_problems_that_are_none_are_found_before_the_run(
    bad_inputs: tuple["Script", Path], content: str
) -> None:
    script, _ = bad_inputs
    (script.folder / "problems.jsonl").write_text(content)
    tiny = Path(__file__).parents[2] / "data" / "tiny" / "final_output.pkl"
    code, _, err = script.run(
        *("run_mlperf.py", "--accuracy", "--input-file", tiny),
        *("--livecodebench-file", "problems.jsonl"),
    )
    assert code == 13
    assert err.splitlines()[-1].startswith("error: problems.jsonl")


def test_an_audit_config_in_the_folder_stops_the_run(bad_inputs: tuple["Script", Path]) -> None:
    script, rows = bad_inputs
    (script.folder / "audit.config").write_text("*.*.mode = 2\n")
    code, _, err = script.run("run_mlperf.py", "--input-file", rows)
    assert code == 14
    assert "audit.config" in err.splitlines()[-1]
    assert "--compliance" in err.splitlines()[-1]


def test_a_run_replaces_what_an_earlier_one_has_left(
    script: "Script", data_set: Callable[[int], Path]
) -> None:
    results = folder(script, "offline")
    results.mkdir(parents=True)
    for name in ("results.pkl", "results_evaluated.pkl", "results_grades.jsonl", "run.json"):
        (results / name).write_text("old")
    code, _, _ = script.run(
        "run_mlperf.py", "--input-file", data_set(5), "--engine-arg", "fail_at=1"
    )
    assert code == 12
    assert not [path.name for path in results.iterdir() if path.read_bytes() == b"old"]
