"""The commands of docs/submission.md work, also on results of real runs."""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from errors import SubmissionError
from mlperf import run as mlperf_run
from tests.mlperf.submission import results
from tests.mlperf.submission.conftest import Command

if TYPE_CHECKING:
    from tests.conftest import Script

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "submission.md").read_text(encoding="utf-8")


def test_the_commands_lead_to_a_checked_tree(finished: Path, tmp_path: Path) -> None:
    """After the first block, the fields are filled in; then there are finished runs."""
    blocks = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 2
    shutil.copytree(finished, tmp_path / "mlperf_results")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    for block in blocks:
        ended = subprocess.run(
            ["bash", "-ec", block],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        results.fill_in(tmp_path / "submission")
    assert ended.stdout.endswith("0 errors\n")


def test_the_commands_of_runs_have_options_that_exist() -> None:
    commands = re.findall(r"^python run_mlperf.py .*?[^\\]$", PAGE, re.MULTILINE | re.DOTALL)
    assert len(commands) == 8
    parser = argparse.ArgumentParser()
    mlperf_run.add_options(parser)
    for command in commands:
        _, unknown = parser.parse_known_args(shlex.split(command.replace("\\\n", " "))[2:])
        assert not unknown


def test_real_short_runs_are_read_and_refused_for_what_they_lack(
    script: "Script",
    data_set: Callable[[int], Path],
    run: Command,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ("--mode", "server", "--input-file", data_set(20), "--num-samples", 8)
    for test in ((), ("--accuracy",)):
        code, _, err = script.run("run_mlperf.py", *options, "--target-qps", 100, *test)
        assert code == 0, err
    words = ("--org", "Acme", "--system", "box", "--division", "open")
    run("init", tmp_path / "tree", *words)
    with pytest.raises(SubmissionError, match=r"the first: .*valid: INVALID: early stopping, T"):
        run("build", tmp_path / "tree", *words, script.folder / "mlperf_results", "--demo")
    report = capsys.readouterr().out
    refused = re.findall(r"^\S+/server: \S+: ([a-z-]+): ", report, re.MULTILINE)
    assert set(refused) == {"valid", "settings", "latency", "user-conf"}, report
    assert "effective_min_duration_ms is 0, less than 600000" in report
    assert "not a number" not in report
