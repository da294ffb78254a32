"""Attacking programs: none succeeds at a level that holds; without a sandbox, they do."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.grading.sandbox.attacks.programs import BITES, BITES_AS_ROOT, BODIES

ROOT = Path(__file__).parents[3]
ATTACKS = Path(__file__).parent / "attacks"
NOBODY = 65534
IS_ROOT = os.geteuid() == 0
USERS = ("this user", "nobody")


def _as(user: str) -> dict[str, Any]:
    return {"user": NOBODY, "group": NOBODY, "extra_groups": []} if user == "nobody" else {}


@cache
def _interpreter(user: str) -> str | None:
    """A Python that the user may run: this one is often in a home that others can't read."""
    names = (f"python3.{minor}" for minor in range(11, 15))
    others = (shutil.which(name, path="/usr/bin:/usr/local/bin") for name in names)
    for path in (sys.executable, *filter(None, others)):
        try:
            command = [path, "-I", "-c", "import ctypes"]
            subprocess.run(command, cwd="/", check=True, capture_output=True, **_as(user))
        except (OSError, subprocess.CalledProcessError):
            continue
        return path
    return None


@cache
def _run(level: str, user: str, names: tuple[str, ...]) -> dict[str, Any]:
    """The outcomes of attacks at a level, as `attacks/run.py` prints them."""
    if user == "nobody" and not IS_ROOT:
        pytest.skip("only root can become another user")
    python = _interpreter(user)
    if python is None:
        pytest.skip("no interpreter that nobody may run: install python3 where all can read it")
    with tempfile.TemporaryDirectory(prefix="copy-") as copy:
        for package in ("grading", "data", "ref_dsinfer"):
            code_only = shutil.ignore_patterns("tiny", "*.pkl", "*.parquet", "*.jsonl", "*.sqlite")
            shutil.copytree(ROOT / package, Path(copy, package), ignore=code_only)
        for module in ("errors.py", "terminal.py"):
            shutil.copy(ROOT / module, copy)
        attacks = Path(copy, ATTACKS.relative_to(ROOT))
        shutil.copytree(ATTACKS, attacks)
        subprocess.run(["chmod", "-R", "a+rX", copy], check=True)
        temporary = Path(copy, "tmp")
        temporary.mkdir()
        temporary.chmod(0o777)
        done = subprocess.run(
            [python, str(attacks / "run.py"), level, *names],
            env={"PYTHONPATH": copy, "TMPDIR": str(temporary), "SECRET": "SECRET"},
            cwd="/",
            capture_output=True,
            text=True,
            timeout=300,
            **_as(user),
        )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _held(level: str, user: str) -> dict[str, dict]:
    result = _run(level, user, tuple(BODIES))
    if result["level"] is None:
        pytest.skip(f"level {level} does not hold on this machine: {result['reason']}")
    assert result["level"] == level, result["reason"]
    assert result["goes on"]
    return result["outcomes"]


@pytest.mark.slow
@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("level", ["full", "kernel", "bwrap"])
class TestWhereALevelHolds:
    def test_no_attack_gets_through_and_the_run_goes_on(self, level: str, user: str) -> None:
        if level == "bwrap" and not shutil.which("bwrap"):
            pytest.skip("bubblewrap is not installed")
        outcomes = _held(level, user)
        assert [name for name, outcome in outcomes.items() if outcome["bitten"]] == []
        assert outcomes.keys() == BODIES.keys()

    def test_the_host_is_as_it_was(self, level: str, user: str) -> None:
        if level == "bwrap" and not shutil.which("bwrap"):
            pytest.skip("bubblewrap is not installed")
        changes = {name: outcome["changes"] for name, outcome in _held(level, user).items()}
        assert {name: change for name, change in changes.items() if change} == {}


@pytest.mark.slow
@pytest.mark.parametrize("user", ["this user", "nobody"])
def test_attacks_bite_where_nothing_holds(user: str) -> None:
    names = BITES_AS_ROOT if user == "this user" and IS_ROOT else BITES
    outcomes = _run("none", user, tuple(sorted(names)))["outcomes"]
    assert {name: out["rule"] for name, out in outcomes.items() if not out["bitten"]} == {}
