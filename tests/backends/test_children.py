"""Leftovers of an engine's processes are found and removed."""

import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from backends.children import Children

SHARES = """
import mmap, sys, time
file = open(sys.argv[1], "w+b")
file.truncate(4096)
memory = mmap.mmap(file.fileno(), 4096)
print(flush=True)
time.sleep(60)
"""


SHARES_EVER_MORE = """
import mmap, sys, time
from itertools import count

kept = []
for number in count():
    with open(f"{sys.argv[1]}-{number}", "wb+") as file:
        file.truncate(1 << 12)
        kept.append(mmap.mmap(file.fileno(), 0))
    if not number:
        print(flush=True)
    time.sleep(0.001)
"""


def child_sharing(path: Path) -> subprocess.Popen:
    child = subprocess.Popen([sys.executable, "-c", SHARES, str(path)], stdout=subprocess.PIPE)
    assert child.stdout
    child.stdout.readline()
    return child


@pytest.mark.slow
@pytest.mark.parametrize("dies", [False, True])
def test_files_in_shared_memory_go_with_the_processes(dies: bool, tmp_path: Path) -> None:
    """Its own ones only, also where it has died before and nobody has collected it."""
    name = f"mlperf-{os.getpid()}"
    its, another = (Path("/dev/shm") / f"{name}-{whose}" for whose in ("its", "another"))
    ended = subprocess.Popen(["true"])  # a zombie until it is waited for
    children = Children(tmp_path / "engine.log", [name])
    child = child_sharing(its)
    another.touch()
    try:
        if dies:
            for _ in range(20):  # the keeper polls for a second, though the clock may leap
                time.sleep(0.05)
            child.kill()
        children.close()
        assert not its.exists()
        assert another.exists()
    finally:
        another.unlink()
        child.wait()
        ended.wait()
    assert child.returncode == -9


@pytest.mark.slow
def test_files_that_are_shared_at_the_last_moment_go_too(tmp_path: Path) -> None:
    name = f"mlperf-{os.getpid()}-last"
    children = Children(tmp_path / "engine.log", [name])
    child = subprocess.Popen(
        [sys.executable, "-c", SHARES_EVER_MORE, f"/dev/shm/{name}"], stdout=subprocess.PIPE
    )
    assert child.stdout
    child.stdout.readline()
    children.close()
    child.wait()
    left = list(Path("/dev/shm").glob(f"{name}*"))
    for path in left:
        path.unlink()
    # the last one may have been created, and not mapped yet
    assert len(left) <= 1


def test_what_is_spawned_writes_to_the_log_and_our_environment_stays(tmp_path: Path) -> None:
    children = Children(tmp_path / "engine.log")
    before = dict(os.environ)
    with children.spawning(MLPERF_SAID="for the engine"):
        context = multiprocessing.get_context("spawn")
        process = context.Process(target=os.system, args=("echo said $MLPERF_SAID",))
        process.start()
        process.join()
    children.close()
    assert "said for the engine" in children.log.read_text()
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ("INFO a\n[12:00] ValueError: no room\nSIGQUIT received", "ValueError: no room"),
        (
            "ValueError: no room\n  cache[rtype].remove(name)\nKeyError: '/mp-x'",
            "ValueError: no room",
        ),
        ("initialised (ImportError: no x)\nx.y.OddException: b", "x.y.OddException: b"),
        (
            "[http] Error: too long\nSubprocess s_0 (pid=7) crashed with exit code -9. Now",
            "Subprocess s_0 (pid=7) crashed with exit code -9",
        ),
        ("nothing of note (ImportError: no x)", None),
    ],
)
def test_the_reason_for_a_failure_is_the_log_s_last(
    lines: str, reason: str | None, tmp_path: Path
) -> None:
    children = Children(tmp_path / "engine.log")
    children.log.write_text(lines)
    first = str(children.failure("it has died")).splitlines()[0]
    children.close()
    assert first == (f"it has died: {reason}" if reason else "it has died")
    assert children.log_contains("note") == ("note" in lines)
