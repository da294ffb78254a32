"""How scripts end: one line for a user's error, a traceback for a bug, and delayed interrupts."""

import subprocess
import sys
from pathlib import Path

import pytest

import entrypoint
import errors

ROOT = Path(__file__).parent.parent


def ended(statement: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    script = f"import entrypoint, errors\ndef main():\n    {statement}\nentrypoint.run(main)\n"
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=ROOT,
        env={"PATH": "", **variables},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("error", errors.UserError.__subclasses__())
def test_a_users_mistake_is_one_line(error: type[errors.UserError]) -> None:
    process = ended(f"raise errors.{error.__name__}('a.pkl: wrong')")
    assert process.returncode == error.exit_code
    assert process.stderr == "error: a.pkl: wrong\n"


def test_a_fault_of_ours_keeps_its_traceback() -> None:
    process = ended("{}['nosuch']")
    assert process.returncode == 1
    assert "KeyError: 'nosuch'" in process.stderr


def test_a_missing_package_names_the_remedy_but_one_of_ours_is_a_fault() -> None:
    missing = ended("import nosuchpackage.part")
    assert missing.returncode == errors.LaunchError.exit_code
    assert "package nosuchpackage is not installed" in missing.stderr
    assert "source setup.sh --backend NAME" in missing.stderr
    assert ended("import backends.nosuch").returncode == 1


def test_an_interrupt_waits_for_an_import_that_would_swallow_it(tmp_path: Path) -> None:
    (tmp_path / "greedy.py").write_text(
        "import os, signal, time\n"
        "try:\n    os.kill(os.getpid(), signal.SIGINT)\n    time.sleep(0.2)\n"
        "except BaseException: pass\n"
        "print('imported', flush=True)\n"
    )
    process = ended(
        "import sys, time; sys.path.append(sys.argv[1]); import greedy; time.sleep(20)",
        str(tmp_path),
    )
    assert (process.returncode, process.stdout) == (entrypoint.INTERRUPTED, "imported\n")
    assert process.stderr.startswith("interrupted")


@pytest.mark.parametrize(
    ("rank", "code", "stderr"),
    [("0", entrypoint.TERMINATED, "terminated: what is finished is on disk\n"), ("1", -15, "")],
)
def test_sigterm_ends_rank_0_as_an_interrupt_does(rank: str, code: int, stderr: str) -> None:
    process = ended(
        "import os, signal, time\n    try: os.kill(os.getpid(), signal.SIGTERM); time.sleep(20)\n"
        "    finally: print('cleaned up')",
        RANK=rank,
    )
    assert (process.returncode, process.stderr) == (code, stderr)
    assert process.stdout == ("cleaned up\n" if rank == "0" else "")


def test_a_failure_elsewhere_that_comes_of_sigterm_is_sigterm() -> None:
    process = ended(
        "import os, signal, time\n"
        "    entrypoint.before_failing.append(lambda reason: print(reason, flush=True))\n"
        "    try: os.kill(os.getpid(), signal.SIGTERM); time.sleep(20)\n"
        "    except BaseException: entrypoint.fail(errors.EngineError('rank 1 has died'))"
    )
    assert process.returncode == entrypoint.TERMINATED
    assert process.stdout == "terminated\n"
    assert process.stderr == "terminated: what is finished is on disk\n"


def test_interrupts_amid_an_import_are_one(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        "import os, signal, time\n"
        "for _ in range(5):\n    os.kill(os.getpid(), signal.SIGINT)\n    time.sleep(0.03)\n"
    )
    process = ended(
        "import sys, time; sys.path.append(sys.argv[1]); import slow\n"
        "    try: time.sleep(20)\n    finally: time.sleep(0.5); print('cleaned up')",
        str(tmp_path),
    )
    assert (process.returncode, process.stdout) == (entrypoint.INTERRUPTED, "cleaned up\n")
    assert process.stderr.count("\n") == 1


def test_another_rank_holds_a_shared_mistake_back() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", "import entrypoint, errors\n"
         "entrypoint.FOLLOWER_GRACE_S = 600\n"
         "def main():\n    raise errors.UsageError('x')\nentrypoint.run(main)"],
        cwd=ROOT,
        env={"PATH": "", "LOCAL_RANK": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    with pytest.raises(subprocess.TimeoutExpired):
        process.communicate(timeout=2)
    process.kill()
    _, stderr = process.communicate()
    assert stderr == ""
