"""Messages and exit codes of entry scripts and modules before they start an engine."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from entrypoint import OURS

ROOT = Path(__file__).parent.parent
SCRIPTS = (
    "run_eval.py",
    "run_eval_mpi.py",
    "run_mlperf.py",
    "run_mlperf_mpi.py",
    "eval_accuracy.py",
)
MODULES = tuple(  # those that users run by python -m
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
    for package in OURS
    for path in sorted((ROOT / package).rglob("*.py"))
    if path.read_text(encoding="utf-8").endswith("entrypoint.run(main)\n")
)
# Python without any installed package
BARE = (sys.executable, "-S", "-E", "-s")


def call(
    python: Sequence[str], script: str, *options: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    names = ("MLPERF_BACKEND", "MLPERF_MODEL", "RANK", "WORLD_SIZE")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    return subprocess.run(
        [*python, script if script in MODULES else ROOT / script, *options],
        cwd=ROOT if script in MODULES else None,
        capture_output=True,
        text=True,
        env=environment | variables,
        timeout=60,
    )


def test_the_commands_of_the_packages_are_known() -> None:
    commands = {"data.journal", "mlperf.submission", "ref_dsinfer.convert", "ref_dsinfer.fp8"}
    assert commands < set(MODULES)


@pytest.mark.parametrize("script", [*SCRIPTS, *MODULES])
def test_help_needs_no_package(script: str) -> None:
    """So it is fast: packages that take long to import are not imported."""
    done = call((*BARE, *(["-m"] if script in MODULES else [])), script, "--help")
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout


@pytest.mark.parametrize(
    "setting",
    [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}],
    ids=["ascii", "C"],
)
@pytest.mark.parametrize("script", [*SCRIPTS, *MODULES])
def test_help_comes_in_every_encoding(script: str, setting: dict[str, str]) -> None:
    done = call(
        (sys.executable, *(["-m"] if script in MODULES else [])), script, "--help", **setting
    )
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_thin(script: str) -> None:
    assert len((ROOT / script).read_text().splitlines()) < 60


@pytest.mark.parametrize("script", ["run_eval.py", "run_mlperf.py"])
def test_the_backend_has_to_be_named(script: str) -> None:
    done = call(BARE, script)
    assert done.returncode == 2
    assert "--backend" in done.stderr


@pytest.mark.parametrize("script", ["run_eval.py", "run_mlperf.py"])
def test_an_unknown_backend_is_refused_with_the_known_ones(script: str) -> None:
    done = call(BARE, script, "--backend", "tensorflow")
    assert done.returncode == 2
    assert done.stderr == "error: unknown backend 'tensorflow' (known: pytorch, vllm, sglang)\n"


@pytest.mark.parametrize("script", ["run_eval_mpi.py", "run_mlperf_mpi.py"])
def test_torchrun_is_required(script: str) -> None:
    done = call(BARE, script)
    assert done.returncode == 10
    assert done.stderr.startswith("error: start this script by torchrun")
    assert done.stderr.count("\n") == 1


def test_an_unknown_mode_is_refused() -> None:
    done = call(BARE, "run_mlperf.py", "--backend", "pytorch", "--mode", "SingleStream")
    assert done.returncode == 2
    assert "interactive" in done.stderr


@pytest.mark.parametrize("mode", ["offline", "server"])
@pytest.mark.parametrize("script", ["run_mlperf.py", "run_mlperf_mpi.py"])
def test_drafts_are_refused_outside_interactive(script: str, mode: str) -> None:
    ranks = {"RANK": "0", "WORLD_SIZE": "1"} if "mpi" in script else {}
    options = ["--backend", "pytorch", "--mode", mode, "--speculative"]
    done = call((sys.executable,), script, *options, **ranks)
    assert done.returncode == 2
    assert done.stderr == "error: --speculative is allowed in --mode interactive only\n"


@pytest.mark.parametrize(
    ("script", "name", "content", "code"),
    [
        ("run_mlperf.py", "missing.pkl", None, 3),
        ("run_eval.py", "missing.pkl", None, 3),
        ("run_eval.py", "rows.csv", b"a,b\n1,2\n", 3),
        ("run_eval.py", "rows.pkl", b"not a pickle", 3),
        ("run_eval.py", "rows.jsonl", b"", 5),
        ("run_mlperf.py", "rows.jsonl", b'{"question": "why"}\n', 4),
    ],
)
def test_a_bad_data_set_is_one_line(
    script: str, name: str, content: bytes | None, code: int, echo_model: Path, tmp_path: Path
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    done = call(
        *((sys.executable,), script, "--backend", "echo", "--model", str(echo_model)),
        *("--input-file", str(path), "--output-dir", str(tmp_path / "out")),
    )
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


@pytest.mark.parametrize("output", ["rows.jsonl.pkl", "rows.pkl", "rows"])
def test_answers_are_not_written_over_their_data_set(
    output: str, echo_model: Path, data_set: Callable[[int], Path], tmp_path: Path
) -> None:
    path = data_set(2).rename(tmp_path / "rows.parquet")
    before = path.read_bytes()
    done = call(
        *((sys.executable,), "run_eval.py", "--backend", "echo", "--model", str(echo_model)),
        *("--input-file", str(path), "--output-dir", str(tmp_path), "--output-file", output),
    )
    assert done.returncode == (0 if output.startswith("rows.jsonl") else 2), done.stderr
    assert ("rows.parquet would overwrite" in done.stderr) is (done.returncode == 2)
    assert path.read_bytes() == before


@pytest.mark.parametrize("script", ["run_eval.py", "run_mlperf.py"])
def test_a_missing_model_is_one_line(script: str, tmp_path: Path) -> None:
    done = call(
        *((sys.executable,), script, "--backend", "echo", "--model", str(tmp_path / "none")),
        *("--output-dir", str(tmp_path)),
    )
    assert done.returncode == 6
    assert done.stderr == f"error: {tmp_path / 'none'}: no such model directory\n"
