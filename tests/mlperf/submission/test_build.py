"""`init` and `build`: what they write, and what they refuse."""

import json
import shutil
from pathlib import Path

import pytest

from errors import InputFileError, OutputError, SubmissionError, UsageError, UserError
from mlperf import machine
from tests.mlperf.submission import results
from tests.mlperf.submission.conftest import Command
from tests.mlperf.submission.violations import BOX, ORG, SYSTEM, Edit, field, remove, text, value
from tests.mlperf.submission.violations import written as written_with

OPTIONS = ("--org", "Acme", "--system", "box")
LOG = Path("accuracy", "mlperf_log_accuracy.json")


@pytest.fixture
def runs(finished: Path, tmp_path: Path) -> Path:
    """An --output-dir whose files may be changed."""
    return Path(shutil.copytree(finished, tmp_path / "mlperf_results"))


@pytest.fixture
def empty(run: Command, tmp_path: Path) -> Path:
    """A tree with a filled-in description and no results."""
    run("init", tmp_path / "new", *OPTIONS)
    results.fill_in(tmp_path / "new")
    return tmp_path / "new"


def files(folder: Path) -> list[str]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def test_init_reads_the_machine_and_check_names_the_rest(
    run: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("init", tmp_path, *OPTIONS)
    description = json.loads((tmp_path / SYSTEM).read_text())
    assert len(description) == 35
    assert description["host_processor_model_name"] == machine.cpu_model()
    assert int(description["host_processor_core_count"]) > 0
    assert "torch" not in description["framework"]
    left = [name for name, text in description.items() if "FILL IN" in str(text)]
    assert {"status", "cooling", "host_networking"} <= set(left)
    capsys.readouterr()
    with pytest.raises(SubmissionError):
        run("check", tmp_path)
    report = capsys.readouterr().out
    assert all(f'"{name}": "FILL IN' in report for name in left)
    with pytest.raises(OutputError, match=r"box.json exists already"):
        run("init", tmp_path, *OPTIONS)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"/file"):
        run("init", tmp_path / "file", *OPTIONS)


def test_a_machine_with_gpus_is_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nyes 'NVIDIA H200, 143771, 570.1, 1980' | head -n 2\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    gpu = machine.Accelerator("NVIDIA H200", 143_771, "570.1", 1980)
    assert machine.read().accelerators == (gpu, gpu)
    program.write_text("#!/bin/sh\nexit 9\n")
    assert machine.read().accelerators == ()


def test_the_kind_of_a_machine_is_read_without_a_program(tmp_path: Path) -> None:
    gpu = tmp_path / "proc" / "driver" / "nvidia" / "gpus" / "0000:01"
    gpu.mkdir(parents=True)
    (gpu / "information").write_text("Model: \t NVIDIA H200\nIRQ: 7\n")
    (tmp_path / "proc" / "cpuinfo").write_text(
        "processor: 0\nmodel name\t: Xeon\nphysical id : 0\ncore id : 0\n\n"
        "processor: 1\nmodel name\t: Xeon\nphysical id : 1\ncore id : 0\n\n"
    )
    assert machine.identity(tmp_path) == {"cpu": "Xeon", "accelerators": ["NVIDIA H200"]}
    host = machine.read(tmp_path)
    assert (host.sockets, host.cores, host.memory_bytes) == (2, 1, 0)


def test_build_makes_the_tree_of_the_rules(run: Command, empty: Path, runs: Path) -> None:
    run("build", empty, *OPTIONS, runs)
    logs = ("mlperf_log_detail.txt", "mlperf_log_summary.txt")
    assert files(empty / BOX / "Server") == sorted(
        [
            *("README.md", "measurements.json", "runs.json", "user.conf"),
            *(f"performance/run_1/{name}" for name in logs),
            *(f"accuracy/{name}" for name in (*logs, "accuracy.txt", LOG.name)),
            *(f"TEST06/performance/run_1/{name}" for name in logs),
            *("TEST06/verify_accuracy.txt", f"TEST06/accuracy/{LOG.name}"),
        ]
    )
    log = (empty / BOX / "Server" / LOG).read_bytes()
    whole = (runs / "server" / LOG).read_bytes()
    assert len(whole) > 10_240 >= len(log)
    start, end = log.split(b"\n\n...\n\n")
    assert whole.startswith(start)
    assert whole.endswith(end)
    assert not list(empty.glob(".*"))
    edited = empty / BOX / "Server" / "measurements.json"
    field("weight_transformations", "quantized by hand")(edited)
    run("build", empty, *OPTIONS, runs)  # again: new results, but what was edited stays
    assert json.loads(edited.read_text())["weight_transformations"] == "quantized by hand"


def test_a_description_of_another_tree_is_adopted(
    run: Command, empty: Path, runs: Path, tmp_path: Path
) -> None:
    with pytest.raises(SubmissionError, match=r"README.md: .*FILL IN"):  # of the new code folder
        run("build", tmp_path / "other", "--org", "Beta", "--system", empty / SYSTEM, runs)
    adopted = json.loads((tmp_path / "other/closed/Beta/systems/box.json").read_text())
    assert adopted["submitter"] == "Beta"


def _log(mode: str, test: str = "performance") -> str:
    return f"{mode}/{test}/mlperf_log_detail.txt"


REASON = ["240 rows, not the benchmark's 4388"]


@pytest.mark.parametrize(
    ("file", "edit", "error", "message"),
    [
        ("offline/accuracy/run.json", remove, InputFileError, "no finished accuracy run"),
        ("server/performance/run.json", remove, InputFileError, "no finished performance run"),
        ("server/compliance", remove, InputFileError, "--mode server --compliance first"),
        ("offline/performance/mlperf_log_summary.txt", remove, InputFileError, "can't be copied"),
        (f"offline/{LOG}", remove, InputFileError, "mlperf_log_accuracy.json: missing"),
        ("offline/accuracy/run.json", written_with("{"), InputFileError, "run.json: not JSON"),
        ("offline/accuracy/results_report.json", written_with("{}"), InputFileError, "no field"),
        (f"offline/{LOG}", written_with("[]"), SubmissionError, "no line hash="),
        (_log("offline"), value("result_validity", "INVALID"), SubmissionError, "valid: INVALID"),
        (_log("server"), value("effective_min_duration_ms", 0), SubmissionError, "settings: "),
        (_log("server"), value("effective_qsl_rng_seed", 1), SubmissionError, "seeds: "),
        (_log("offline", "accuracy"), written_with(""), SubmissionError, "is empty"),
        (
            *("offline/performance/run.json", field("not_submittable_because", REASON)),
            *(SubmissionError, "the performance run: 240 rows"),
        ),
        (
            *("server/accuracy/run.json", field("resumed", {"samples": 9})),
            *(SubmissionError, "the accuracy run was resumed"),
        ),
        (
            *("server/accuracy/run.json", field("machine.cpu", "EPYC")),
            *(SubmissionError, "performance and accuracy runs differ: machine.cpu"),
        ),
        (
            *("offline/accuracy/results_report.json", text('"rows": 932', '"rows": 52')),
            *(SubmissionError, "data-set: the data set has aime 52"),
        ),
        (
            *("offline/accuracy/accuracy.txt", text("81.5", "80.5446")),
            *(SubmissionError, "exact_match 80.5446 is below the limit 80.544618"),
        ),
    ],
)
def test_what_can_not_be_submitted_is_refused_with_folder_and_reason(
    run: Command,
    empty: Path,
    runs: Path,
    file: str,
    edit: Edit,
    error: type[UserError],
    message: str,
) -> None:
    edit(runs / file)
    with pytest.raises(error) as raised:
        run("build", empty, *OPTIONS, runs)
    assert message in str(raised.value)
    assert str(runs / file.split("/")[0]) in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (empty / ORG / "results").exists()
    assert not list(empty.glob(".*"))


def test_results_of_two_systems_are_refused(run: Command, empty: Path, runs: Path) -> None:
    for path in runs.glob("server/*/run.json"):
        field("backend", "sglang")(path)
    field("backend", "sglang")(runs / "server/compliance/TEST06/run.json")
    with pytest.raises(SubmissionError, match=r"/server: another system than"):
        run("build", empty, *OPTIONS, runs)


def test_contradicting_options_are_refused(
    run: Command, empty: Path, runs: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(runs, tmp_path / "again")
    wrong_conf = tmp_path / "user.conf"
    wrong_conf.write_text("llama2-70b.Offline.target_qps = 6.0\n")
    cases: list[tuple[type[UserError], str, tuple[object, ...]]] = [
        (UsageError, "results of offline are in both", (*OPTIONS, runs, other)),
        (UsageError, "--demo: the closed division", (*OPTIONS, runs, "--demo")),
        (UsageError, "unknown round 'v7'", (*OPTIONS, runs, "--round", "v7")),
        (UsageError, "--org '../x'", ("--org", "../x", "--system", "box", runs)),
        (InputFileError, "none: no results in it", (*OPTIONS, tmp_path / "none")),
        (InputFileError, "run init first", ("--org", "Acme", "--system", "crate", runs)),
        (InputFileError, "x.json: can't be read", ("--org", "A", "--system", "x.json", runs)),
        (SubmissionError, "no setting named", (*OPTIONS, runs, "--user-conf", wrong_conf)),
        (InputFileError, "no.conf: can't be copied", (*OPTIONS, runs, "--user-conf", "no.conf")),
    ]
    for error, message, words in cases:
        with pytest.raises(error, match=message):
            run("build", empty, *words)


def test_a_demonstration_names_what_it_relaxes(
    run: Command, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On another data set, in the open division: settings and seeds are still the benchmark's."""
    for mode in results.SCENARIOS:
        for name in ("accuracy", "performance"):
            path = runs / _log(mode, name)
            value("qsl_reported_total_count", 240)(path)
            value("effective_accuracy_sample_count", 240)(path)
            field("not_submittable_because", REASON)(path.with_name("run.json"))
        text("4388", "240")(runs / mode / "accuracy" / "accuracy.txt")
        text("81.5", "60.5")(runs / mode / "accuracy" / "accuracy.txt")
        field("tasks", {"gpqa": {"rows": 240}})(runs / mode / "accuracy" / "results_report.json")
    tree, words = tmp_path / "demo", (*OPTIONS, "--division", "open")
    run("init", tree, *words)
    results.fill_in(tree)
    with pytest.raises(SubmissionError, match=r"of the open division .*; the first: .*offline"):
        run("build", tree, *words, runs)
    run("build", tree, *words, runs, "--demo")
    capsys.readouterr()
    run("check", tree, "--allow-relaxed")
    report = capsys.readouterr().out
    server = tree / "open/Acme/results/box/deepseek-r1/Server"
    relaxed = json.loads((server / "relaxations.json").read_text())
    assert set(relaxed) == {"rows", "graded-rows", "data-set"}
    for rule, reason in relaxed.items():
        assert f"{rule}: {reason}" in (server / "README.md").read_text()
        assert f"relaxations: {rule}: {reason}" in report
    assert "note: " in report  # the score, which the open division does not limit
    assert "0 errors" in report
    with pytest.raises(SubmissionError, match="--allow-relaxed"):
        run("check", tree)
    value("effective_min_duration_ms", 0)(runs / _log("server"))
    with pytest.raises(SubmissionError, match="effective_min_duration_ms is 0"):
        run("build", tree, *words, runs, "--demo")
