"""The level is one that the machine supports; the tests imitate machines that support less."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from grading.sandbox.inside.limits import Limits
from grading.sandbox.sandbox import Sandbox
from grading.sandbox.types import SandboxError

ROOT = Path(__file__).parents[3]

# a filter that answers Landlock's three calls, or seccomp's prctl, as a kernel without them does
WITHOUT = """
import ctypes, struct, sys
libc = ctypes.CDLL(None)
op = lambda code, value, yes=0, no=0: struct.pack("=HBBI", code, yes, no, value)
code = op(0x20, 0) + op(0x35, 444, 0, 2) + op(0x25, 446, 1, 0) + op(6, 0x50026) + op(6, 0x7FFF0000)
class Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.byref(Program(len(code) // 8, code)), 0, 0) == 0
"""
FIND = """
import json, sys
from grading.sandbox.sandbox import Sandbox
with Sandbox(*sys.argv[1:]) as sandbox:
    print(json.dumps([sandbox.level, sandbox.reason, dict(sandbox.canaries)]))
"""
NO_NAMESPACES = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"'
needs_bubblewrap = pytest.mark.skipif(
    not shutil.which("bwrap"), reason="bubblewrap is not installed"
)


def _find(
    *arguments: str,
    landlock: bool = True,
    namespaces: bool = True,
    path: str = os.environ["PATH"],
    prefix: tuple[str, ...] = (),
) -> tuple[str | None, str, dict[str, str]]:
    """Level, reason and canaries on a machine without some kernel features."""
    command = [*prefix, sys.executable, "-c", FIND if landlock else WITHOUT + FIND, *arguments]
    if not namespaces:
        unshare, shell = shutil.which("unshare"), shutil.which("sh")  # not by the given `path`
        assert unshare
        assert shell
        command = [unshare, "-Ur", shell, "-c", NO_NAMESPACES, "sh", *command]
    done = subprocess.run(
        command, cwd=ROOT, env={"PATH": path}, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def test_the_strongest_level_that_holds_is_found(sandbox: Sandbox) -> None:
    assert sandbox.level == "full"
    assert sandbox.reason == ""
    assert len(sandbox.canaries) > 15
    assert set(sandbox.canaries.values()) == {"held"}


def test_without_user_namespaces_it_is_the_kernel() -> None:
    level, reason, canaries = _find(namespaces=False)
    assert level == "kernel"
    assert "full: " in reason
    assert "namespaces" in reason
    assert set(canaries.values()) == {"held"}


@pytest.mark.parametrize("arguments", [("full",), ("auto", "full")])
def test_what_does_not_hold_is_refused(arguments: tuple[str, ...]) -> None:
    level, reason, _ = _find(*arguments, namespaces=False)
    assert level is None
    assert "full: " in reason


def test_without_landlock_the_kernel_level_leaks_and_is_not_used() -> None:
    level, reason, canaries = _find("kernel", landlock=False)
    assert level is None
    assert "reading a file outside" in reason
    assert "Landlock" in reason
    assert canaries["reading a file outside"] == "open"
    assert canaries["fork"] == "held"
    assert _find(landlock=False)[0] == "full"  # its own root directory hides what Landlock would


@needs_bubblewrap
def test_without_both_bubblewrap_steps_in_for_root() -> None:
    level, reason, canaries = _find(landlock=False, namespaces=False)
    assert level == ("bwrap" if os.geteuid() == 0 else None), reason
    assert level is None or set(canaries.values()) == {"held"}


def test_without_all_nothing_holds() -> None:
    level, reason, _ = _find(landlock=False, namespaces=False, path="/bin/nowhere")
    assert level is None
    assert all(f"{name}: " in reason for name in ("full", "kernel", "bwrap"))
    assert "bubblewrap (the command bwrap) is not installed" in reason


def test_a_container_is_trusted_and_its_open_canaries_reported() -> None:
    level, reason, canaries = _find("container", landlock=False, namespaces=False)
    assert level == "container"
    assert "Landlock" in reason
    assert canaries["reading a file outside"] == "open"
    assert canaries["TCP connection"] == "held"


def test_none_is_loud(caplog: pytest.LogCaptureFixture) -> None:
    with Sandbox("none") as sandbox:
        assert sandbox.level == "none"
        assert sandbox.canaries["reading a file outside"] == "open"
    assert "NO SANDBOX" in caplog.text


def test_nothing_starts_where_nothing_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with Sandbox("bwrap") as sandbox:
        assert sandbox.level is None
        assert sandbox.reason == "bwrap: bubblewrap (the command bwrap) is not installed"
        with pytest.raises(SandboxError, match="no sandbox level holds: bwrap: bubblewrap"):
            sandbox.start("grading.tasks.program", Limits())


@needs_bubblewrap
def test_bubblewrap_holds() -> None:
    with Sandbox("bwrap") as sandbox:
        assert sandbox.level == "bwrap", sandbox.reason
        assert set(sandbox.canaries.values()) == {"held"}


@needs_bubblewrap
def test_bubblewrap_s_error_is_in_the_reason() -> None:
    """Without namespaces, which it may create neither as a user nor by a capability."""
    without_capabilities = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
    level, reason, _ = _find("bwrap", namespaces=False, prefix=without_capabilities)
    assert level is None
    assert "bwrap: the grading processes' fork server can't be started: bwrap: " in reason


def test_unknown_levels_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown sandbox level 'strong'"):
        Sandbox("strong")
    with pytest.raises(ValueError, match="unknown sandbox level 'some'"):
        Sandbox(minimum="some")
