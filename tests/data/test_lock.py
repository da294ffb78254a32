"""Only one run at a time writes to a directory."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data.lock import locked
from errors import OutputError

ROOT = Path(__file__).parents[2]
HOLDER = """
import os, sys
from pathlib import Path
from data.lock import locked
with locked(Path(sys.argv[1])):
    if os.fork() == 0:  # a child that outlives it, as engines' processes may
        os.setsid()
        sys.stdin.read()
        os._exit(0)
    print("locked", flush=True)
    os.kill(os.getpid(), 9)
"""


def test_a_second_process_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    attempt = f"from data.lock import locked\nfrom pathlib import Path\nlocked(Path({str(path)!r}))"
    with locked(path):
        ended = subprocess.run(
            [sys.executable, "-c", f"{attempt}.__enter__()"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
    assert ended.returncode == 1
    assert f"OutputError: {tmp_path}: process {os.getpid()} on " in ended.stderr
    assert "writes there: wait for it" in ended.stderr
    with locked(path):
        pass


def test_a_killed_process_holds_no_lock_and_neither_do_its_children(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, path],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == "locked\n"
        assert holder.wait() == -9
        with locked(path):
            pass


def test_a_directory_that_can_t_be_written_or_locked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OutputError, match="can't be written"):
        locked(tmp_path / "none" / ".lock").__enter__()

    def no_locks(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.lockf", no_locks)
    with caplog.at_level(logging.WARNING), locked(tmp_path / ".lock"):
        assert "No locks available" in caplog.text
