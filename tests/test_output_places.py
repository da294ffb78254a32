"""Directories in which results can't be written, or only some: nothing is lost, one line each."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from data.journal import read_journal

if TYPE_CHECKING:
    from tests.conftest import Script

ROOT = Path(__file__).parent.parent
# a mount of one's own, which ends with its processes
ALONE = ["unshare", "--mount", *(["--map-root-user"] if os.getuid() else [])]
SHELL = """
mount -t tmpfs -o size="$1" tmpfs disk
shift
"$@"
code=$?
rm -f disk/filler
cp -r disk kept
exit $code
"""
SCRIPTS = {
    "run_eval.py": ("--output-file", "disk/answers.pkl"),
    "run_mlperf.py": ("--accuracy", "--output-dir", "disk"),
}
# Of run_mlperf, which refuses to start with too little room: an engine then fills the disk
FAULTY = "tests/mlperf/faulty.py"
FILL = ("--backend", "faulty", "--engine-arg", "fault=fill", "--engine-arg", "sent=sent")
ROOM = {"completions.journal": 8 << 10, "results.p": 70 << 10}  # bytes that it leaves


def can_mount() -> bool:
    try:
        tried = [*ALONE, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
        return subprocess.run(tried, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not can_mount(), reason="no file system can be mounted here")
@pytest.mark.parametrize(
    ("script", "rows", "size", "named"),
    [
        ("run_eval.py", 60, "4k", "answers.engine.json"),
        # more answers than the disk has room for, whatever LoadGen logs beside them
        ("run_eval.py", 600, "40k", "answers.journal"),
        # room for answers and logs, not for the pickle and parquet made of them
        ("run_eval.py", 60, "32k", "answers.p"),
        (FAULTY, 60, "200m", "completions.journal"),
        (FAULTY, 60, "200m", "results.p"),
    ],
)
def test_a_disk_that_fills_up_leaves_what_it_holds(
    script: str,
    rows: int,
    size: str,
    named: str,
    echo_model: Path,
    data_set: Callable[[int], Path],
    tmp_path: Path,
) -> None:
    (tmp_path / "disk").mkdir()
    ended = subprocess.run(
        [
            *(*ALONE, "bash", "-c", SHELL, "bash", size, sys.executable, str(ROOT / script)),
            *("--backend", "echo", "--model", echo_model, "--input-file", data_set(rows)),
            *(SCRIPTS[script] if script in SCRIPTS else SCRIPTS["run_mlperf.py"] + FILL),
            *(("--engine-arg", f"room={ROOM[named]}") if script == FAULTY else ()),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 11, ended.stderr
    assert "Traceback" not in ended.stderr
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("error: disk/")
    assert f"{named}" in last
    assert "can't be written: " in last
    [journal] = (tmp_path / "kept").rglob("*.journal")
    answered = read_journal(journal)
    for state in (tmp_path / "kept").rglob("state.json"):
        content = json.loads(state.read_text())
        assert (content["state"], f"error: {content['error']}") == ("failed", last)
    if "journal" not in named and "engine" not in named:
        assert len(answered) == rows


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("place", ["file/below", "link", "sealed"])
def test_an_unwritable_output_directory_is_named_before_anything_starts(
    name: str, place: str, script: "Script", data_set: Callable[[int], Path], tmp_path: Path
) -> None:
    if place == "sealed" and os.getuid() == 0:
        pytest.skip("root may write anywhere")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("file/at/all")
    (tmp_path / "sealed").mkdir(0o500)
    *options, _ = SCRIPTS[name]
    target = f"{place}/answers.pkl" if name == "run_eval.py" else place
    code, _, err = script.run(name, "--input-file", data_set(3), *options, target)
    assert code == 11, err
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith(f"error: {place}")
    assert "can't be written: " in err.splitlines()[-1]
    assert (tmp_path / "file").read_text() == "mine"
