"""Options of the reference and of MLCommons' automation: they are accepted and do what they say."""

import argparse
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import pytest

from data.samples import read_frame
from mlperf import mlperf_conf, run, settings
from tests import forked

if TYPE_CHECKING:
    from tests.conftest import Script

ROOT = Path(__file__).parents[1]
SHORT = ("--target-qps", 100, "--min-duration", 0, "--min-query-count", 8)


def parse(*words: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    run.add_options(parser)
    return parser.parse_args(["--backend", "echo", *map(str, words)])


@pytest.mark.parametrize("option", ["--mode", "--scenario"])
@pytest.mark.parametrize("name", ["Offline", "Server", "Interactive", "SERVER", "offline"])
def test_a_scenario_is_a_mode_in_any_letters(option: str, name: str) -> None:
    assert parse(option, name).mode == name.lower()


def test_two_scenarios_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse("--scenario", "Server", "--mode", "server").mode == "server"
    assert parse("--mode", "offline", "--mode", "server").mode == "server"
    with pytest.raises(SystemExit) as ended:
        parse("--scenario", "Server", "--mode", "offline")
    assert ended.value.code == 2
    assert "--mode offline contradicts --scenario server" in capsys.readouterr().err


def test_the_first_rows_are_skipped(script: "Script", data_set: Callable[[int], Path]) -> None:
    path = data_set(20)
    options = ("--input-file", path, "--skip-samples", 15, "--output-file", "a.pkl")
    code, _, err = script.run("run_eval.py", *options, "--num-samples", 3)
    assert code == 0, err
    assert "3 of 20 rows, without the first 15" in err
    frame = pd.read_parquet(script.folder / "a.parquet")
    assert list(frame["question"]) == ["question 15", "question 16", "question 17"]
    assert list(frame["sample_index"]) == [0, 1, 2]
    for skip, code_, message in (
        (20, 2, f"--skip-samples 20: {path} has only 20 rows"),
        (-1, 2, "must be 0 or more, not -1"),
    ):
        code, _, err = script.run("run_eval.py", "--input-file", path, "--skip-samples", skip)
        assert (code, message in err) == (code_, True), err


def test_rows_in_messages_are_counted_from_the_first_that_is_used(
    script: "Script", data_set: Callable[[int], Path]
) -> None:
    path = data_set(5)
    frame = pd.read_parquet(path)
    frame.loc[3, "text_input"] = None
    frame.to_parquet(path)
    code, _, err = script.run("run_eval.py", "--input-file", path, "--skip-samples", 2)
    assert code == 4
    assert f"error: {path}, after its first 2 rows: row 1: text_input is missing, not text" in err


def test_other_skipped_rows_are_another_run(
    script: "Script", data_set: Callable[[int], Path]
) -> None:
    options = ("--input-file", data_set(9), "--output-file", "a.pkl")
    code, _, err = script.run("run_eval.py", *options, "--skip-samples", 4)
    assert code == 0, err
    code, _, err = script.run("run_eval.py", *options, "--skip-samples", 5, "--resume")
    assert code == 3
    assert "the rows skipped" in err


def test_a_loadgen_run_says_that_rows_were_skipped_and_its_log_is_graded(
    script: "Script", data_set: Callable[[int], Path], echo_model: Path
) -> None:
    path = data_set(12)
    options = ("--input-file", path, "--skip-samples", 8, "--accuracy", "--log-dir", "logs")
    code, out, err = script.run("run_mlperf.py", *options, "--output-file", "answers/a.pkl")
    assert code == 0, err
    assert "the first 8 rows were skipped" in out
    record = json.loads((script.folder / "logs" / "run.json").read_text())
    assert record["skipped_rows"] == 8
    assert not record["submittable"]
    assert not (script.folder / "logs" / "results.pkl").exists()
    assert not (script.folder / "mlperf_results").exists()
    answers = read_frame(script.folder / "answers" / "a.parquet")
    assert list(answers["question"]) == [f"question {row}" for row in range(8, 12)]
    graded = read_frame(script.folder / "logs" / "results_evaluated.pkl")

    log = script.folder / "logs" / "mlperf_log_accuracy.json"
    inputs = ("--input-file", log, "--dataset-file", path, "--tokenizer", echo_model)
    code, out, err = _grade(script, *inputs, "--skip-samples", 8, "--output-file", "again.pkl")
    assert code == 0, err
    again = read_frame(script.folder / "again.pkl")
    assert list(again["question"]) == list(graded["question"])
    assert list(again["model_output"]) == list(graded["model_output"])


def test_skipped_rows_need_their_data_set(
    script: "Script", data_set: Callable[[int], Path]
) -> None:
    path = data_set(5)
    code, _, err = _grade(script, "--input-file", path, "--skip-samples", 1)
    assert (code, "add --dataset-file" in err) == (2, True)
    code, _, err = _grade(script, "--input-file", path, "--skip-samples", 5, "--dataset-file", path)
    assert (code, "has only 5 rows" in err) == (2, True)


def test_verbose_grading_tells_every_row(script: "Script") -> None:
    frame = pd.DataFrame(
        {
            "dataset": ["gpqa", "aime1983"],
            "ground_truth": ["B", "7"],
            "model_output": ["ANSWER: B", "\x1b[2J"],
            "tok_model_output_len": [2, 1],
        }
    )
    frame.to_pickle(script.folder / "r.pkl")
    options = ("--input-file", "r.pkl", "--expected-rows", 2)
    _, _, err = _grade(script, *options)
    assert "row 0" not in err
    _, _, err = _grade(script, *options, "--verbose")  # the grades of the first time are told too
    assert "row 0: gpqa: ok, extracted 'B', truth 'B', by " in err
    assert "row 1: aime: no_answer, extracted None, truth '7', by " in err


def test_answers_are_not_written_over_their_data_set(
    script: "Script", data_set: Callable[[int], Path]
) -> None:
    path = data_set(8)
    options = ("--input-file", path, "--num-samples", 8, "--target-qps", 100)
    code, _, err = script.run("run_mlperf.py", *options, "--output-file", path)
    assert (code, "would overwrite the input" in err) == (2, True)


@pytest.mark.parametrize("mode", settings.MODES)
def test_an_mlperf_conf_like_loadgen_s_own_changes_nothing(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "mlperf.conf"
    path.write_text(settings.BENCHMARK_CONF.read_text())
    names = settings.MODES[mode]
    assert mlperf_conf.changes(path, names.model, names.scenario) == []


def test_another_mlperf_conf_is_used_and_told(
    script: "Script", data_set: Callable[[int], Path]
) -> None:
    conf = script.folder / "mlperf.conf"
    conf.write_text(
        "*.*.min_duration = 1\n*.Server.ttft_latency = 9000\n*.Server.target_qps = 3\n"
        "other.Server.tpot_latency = 1\n"
    )
    user = script.folder / "user.conf"
    user.write_text("*.Server.target_qps = 200\n")
    options = ("--scenario", "Server", "--mlperf-conf", conf, "--user-conf", user)
    code, out, err = script.run(
        "run_mlperf.py", "--input-file", data_set(20), *options, "--min-query-count", 20
    )
    assert code == 0, err
    assert "target_qps 200" in err
    assert f"no, because --mlperf-conf {conf} sets min_duration_ms 1, not 600000" in out
    assert "ttft_latency 9000000000, not 2000000000" in out
    assert "tpot_latency" not in out
    results = script.folder / "mlperf_results" / "server" / "performance"
    detail = (results / "mlperf_log_detail.txt").read_text()
    assert '"requested_server_ttft_latency", "value": 9000000000' in detail
    assert json.loads((results / "run.json").read_text())["mlperf_conf"] == str(conf)


@pytest.mark.parametrize(
    ("text", "message"), [(None, "can't be read"), ("min_duration=1\n", "line 1: 'min_duration=1'")]
)
def test_an_mlperf_conf_that_can_t_be_used_is_named(
    script: "Script", data_set: Callable[[int], Path], text: str | None, message: str
) -> None:
    conf = script.folder / "other.conf"
    if text:
        conf.write_text(text)
    code, _, err = script.run(
        "run_mlperf.py", "--input-file", data_set(8), *SHORT, "--mlperf-conf", conf, "--dry-run"
    )
    assert code == 14
    assert f"error: {conf}: {message}" in err


def test_the_newer_name_of_launch_is_a_link() -> None:
    link = ROOT / "launch_docker.sh"
    assert link.is_symlink()
    assert link.resolve() == ROOT / "launch.sh"
    helps = [
        subprocess.run([path, "--help"], capture_output=True, text=True, check=True)
        for path in (link, ROOT / "launch.sh")
    ]
    assert helps[0].stdout + helps[0].stderr == helps[1].stdout + helps[1].stderr


def _grade(script: "Script", *options: object) -> tuple[int, str, str]:
    ended = forked.run("eval_accuracy.py", *options, cwd=script.folder)
    return ended.returncode, ended.stdout, ended.stderr
