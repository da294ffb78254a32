"""Exit codes: one class, one code; a user's mistake is a line, a fault of ours a traceback."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ref_dsinfer import errors

ROOT = Path(__file__).parent.parent


def classes() -> list[type[errors.UserError]]:
    return [
        value
        for value in vars(errors).values()
        if isinstance(value, type)
        and issubclass(value, errors.UserError)
        and value is not errors.UserError
    ]


def ended(statement: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    script = f"from ref_dsinfer import errors\ndef main():\n    {statement}\nerrors.run(main)\n"
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=ROOT,
        env={"PATH": "", **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_class_has_a_code_of_its_own() -> None:
    codes = [error.exit_code for error in classes()]
    assert len(set(codes)) == len(codes)
    assert not {0, 1, errors.INTERRUPTED} & set(codes)


def test_the_readme_lists_every_code() -> None:
    rows = re.findall(r"^\| ([\d, ]+) \|", (ROOT / "README.md").read_text(encoding="utf-8"), re.M)
    listed = {int(code) for row in rows for code in row.split(",")}
    assert listed == {error.exit_code for error in classes()} | {errors.INTERRUPTED}


@pytest.mark.parametrize("error", classes())
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
    assert "nosuchpackage" in missing.stderr
    assert "setup.sh" in missing.stderr
    assert ended("import backends.nosuch").returncode == 1


def test_an_interrupt_waits_for_an_import_that_would_swallow_it(tmp_path: Path) -> None:
    (tmp_path / "greedy.py").write_text(
        "import os, signal, time\n"
        "try:\n    os.kill(os.getpid(), signal.SIGINT)\n    time.sleep(0.2)\n"
        "except BaseException: pass\n"
    )
    process = ended(
        "import sys, time; sys.path.append(sys.argv[1]); import greedy; print('imported');"
        " sys.stdout.flush(); time.sleep(20)",
        str(tmp_path),
    )
    assert (process.returncode, process.stdout) == (errors.INTERRUPTED, "imported\n")
    assert process.stderr.startswith("interrupted")


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
    assert (process.returncode, process.stdout) == (errors.INTERRUPTED, "cleaned up\n")
    assert process.stderr.count("\n") == 1


def test_another_rank_holds_a_shared_mistake_back() -> None:
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-c", "from ref_dsinfer import errors\n"
         "def main():\n    raise errors.UsageError('x')\nerrors.run(main)"],
        cwd=ROOT,
        env={"PATH": "", "LOCAL_RANK": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    with pytest.raises(subprocess.TimeoutExpired):
        process.communicate(timeout=2)
    process.kill()
    _, said = process.communicate()
    assert said == ""
    assert time.monotonic() - began < errors.FOLLOWER_GRACE_S
