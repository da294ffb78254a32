"""The fork server: what its processes inherit, and what it cleans up after them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from grading.sandbox.inside.forkserver import is_too_full, remove

ROOT = Path(__file__).parents[4]


@pytest.mark.parametrize("module", ["grading.tasks.program", "grading.sandbox.inside.canaries"])
def test_a_process_inherits_no_more_than_it_needs(module: str) -> None:
    """Each module that registers a hook for forks makes every start slower."""
    code = (
        f"import sys; sys.path.append({str(ROOT)!r});"
        f" import grading.sandbox.inside.forkserver, {module}; getattr({module}, 'handler')();"
        " print(*{'threading', 'logging', 'subprocess', 'asyncio'} & {*sys.modules})"
    )
    command = [sys.executable, "-I", "-S", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_working_directory_is_measured_and_removed_however_deep(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    here = os.open(work, os.O_RDONLY)
    for _ in range(3000):  # past any path's length, and any recursion
        os.mkdir("x" * 9, dir_fd=here)
        here, parent = os.open("x" * 9, os.O_RDONLY, dir_fd=here), here
        os.close(parent)
    os.close(here)
    (work / "link").symlink_to(tmp_path)
    (work / "closed").mkdir(mode=0)
    assert is_too_full(str(work))
    remove(str(work))
    assert list(tmp_path.iterdir()) == []
