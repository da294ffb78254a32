"""The level is what the machine holds, whatever was asked for; lesser machines are made here."""

import errno
import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from data.sandbox import Limits, Sandbox, SandboxError, seccomp

ROOT = Path(__file__).parents[3]
ALLOW, REFUSE, MISSING, KILL = 0x7FFF0000, 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS, 1 << 31

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
from data.sandbox import Sandbox
with Sandbox(*sys.argv[1:]) as sandbox:
    print(json.dumps([sandbox.level, sandbox.reason, dict(sandbox.canaries)]))
"""
NO_NAMESPACES = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"'
needs_bubblewrap = pytest.mark.skipif(
    not shutil.which("bwrap"), reason="bubblewrap is not installed"
)


def _find(*arguments, landlock=True, namespaces=True, path=os.environ["PATH"]):
    """What is found on a machine that lacks something."""
    command = [sys.executable, "-c", FIND if landlock else WITHOUT + FIND, *arguments]
    if not namespaces:
        command = [
            shutil.which("unshare"),
            "-Ur",
            shutil.which("sh"),
            "-c",
            NO_NAMESPACES,
            "sh",
            *command,
        ]
    done = subprocess.run(
        command, cwd=ROOT, env={"PATH": path}, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def test_the_strongest_level_that_holds_is_found(sandbox):
    assert sandbox.level == "full"
    assert sandbox.reason == ""
    assert len(sandbox.canaries) > 15
    assert set(sandbox.canaries.values()) == {"held"}


def test_without_user_namespaces_it_is_the_kernel():
    level, reason, canaries = _find(namespaces=False)
    assert level == "kernel"
    assert "full: " in reason
    assert "namespaces" in reason
    assert set(canaries.values()) == {"held"}


@pytest.mark.parametrize("arguments", [("full",), ("auto", "full")])
def test_what_does_not_hold_is_refused(arguments):
    level, reason, _ = _find(*arguments, namespaces=False)
    assert level is None
    assert "full: " in reason


def test_without_landlock_the_kernel_level_leaks_and_is_not_used():
    level, reason, canaries = _find("kernel", landlock=False)
    assert level is None
    assert "reading a file outside" in reason
    assert "Landlock" in reason
    assert canaries["reading a file outside"] == "open"
    assert canaries["fork"] == "held"
    assert _find(landlock=False)[0] == "full"  # a root of its own hides what Landlock would


@needs_bubblewrap
def test_without_both_bubblewrap_steps_in_for_root():
    level, reason, canaries = _find(landlock=False, namespaces=False)
    assert level == ("bwrap" if os.geteuid() == 0 else None), reason
    assert level is None or set(canaries.values()) == {"held"}


def test_without_all_nothing_holds():
    level, reason, _ = _find(landlock=False, namespaces=False, path="/bin/nowhere")
    assert level is None
    assert all(f"{name}: " in reason for name in ("full", "kernel", "bwrap"))
    assert "bubblewrap is not installed" in reason


def test_a_container_is_believed_and_told_what_is_open():
    level, reason, canaries = _find("container", landlock=False, namespaces=False)
    assert level == "container"
    assert "Landlock" in reason
    assert canaries["reading a file outside"] == "open"
    assert canaries["TCP connection"] == "held"


def test_none_is_loud(caplog):
    with Sandbox("none") as sandbox:
        assert sandbox.level == "none"
        assert sandbox.canaries["reading a file outside"] == "open"
    assert "UNCONFINED" in caplog.text


def test_nothing_starts_where_nothing_holds(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with Sandbox("bwrap") as sandbox:
        assert sandbox.level is None
        assert sandbox.reason == "bwrap: bubblewrap is not installed"
        with pytest.raises(SandboxError, match="no sandbox: bwrap: bubblewrap is not installed"):
            sandbox.start("data.tasks.program", Limits())


@needs_bubblewrap
def test_bubblewrap_holds():
    with Sandbox("bwrap") as sandbox:
        assert sandbox.level == "bwrap", sandbox.reason
        assert set(sandbox.canaries.values()) == {"held"}


@needs_bubblewrap
def test_what_bubblewrap_complains_of_is_told():
    python = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", sys.executable]
    command = [*python, "-c", FIND, "bwrap"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    level, reason, _ = json.loads(done.stdout)
    assert level in ("bwrap", None)
    assert level or "bwrap: a process to grade in can't be started: bwrap: " in reason


def test_unknown_levels_are_refused():
    with pytest.raises(ValueError, match="'strong' is no level"):
        Sandbox("strong")
    with pytest.raises(ValueError, match="'some' is no level"):
        Sandbox(minimum="some")


def _verdict(machine, audit, number, *arguments, pid=7):
    """What the filter answers, by running it as the kernel does."""
    data = struct.pack("=iIQ6Q", number, audit, 0, *arguments, *[0] * (6 - len(arguments)))
    code = list(struct.iter_unpack("=HBBI", seccomp.program(machine, pid)))
    at = value = 0
    while True:
        operation, yes, no, operand = code[at]
        at += 1
        if operation == 0x20:
            (value,) = struct.unpack_from("=I", data, operand)
        elif operation == 0x54:
            value &= operand
        elif operation == 0x15:
            at += yes if value == operand else no
        else:
            return operand


@pytest.mark.parametrize(
    ("machine", "audit", "numbers"),
    [
        ("x86_64", 0xC000003E, {"read": 0, "openat": 257, "clone": 56, "kill": 62, "sendto": 44}),
        (
            "aarch64",
            0xC00000B7,
            {"read": 63, "openat": 56, "clone": 220, "kill": 129, "sendto": 206},
        ),
    ],
)
def test_the_filter_allows_what_is_listed_and_nothing_else(machine, audit, numbers):
    def verdict(name, *arguments):
        return _verdict(machine, audit, numbers[name], *arguments)

    assert verdict("read") == ALLOW
    assert verdict("openat", 0, 0, 0o1101) == ALLOW
    assert verdict("openat", 0, 0, 0o2000000) == ALLOW
    assert verdict("openat", 0, 0, 0o1000) == REFUSE
    assert verdict("clone", 0x3D0F00) == ALLOW  # as glibc makes a thread
    assert verdict("clone", 0x7D0F00) == ALLOW  # as musl does
    for flags in (17, 0x01200011, 0x3D0F00 | 0x20000000, 0x3D0F00 & ~0x10000, 0x4111):
        assert verdict("clone", flags) == REFUSE
    assert verdict("kill", 7, 9) == ALLOW
    assert verdict("kill", 1 << 32 | 7, 9) == ALLOW  # a process number has 32 bits
    for other in (8, 0, 0xFFFFFFFF, 0xFFFFFFF9):
        assert verdict("kill", other, 9) == REFUSE
    assert verdict("sendto", 3, 9, 9, 0, 0) == ALLOW
    assert verdict("sendto", 3, 9, 9, 0, 1 << 40) == REFUSE
    assert _verdict("x86_64", 0x40000003, 3) == KILL  # calls of i386
    allowed = [n for n in range(600) if _verdict(machine, audit, n) in (ALLOW, REFUSE)]
    assert 100 < len(allowed) < 150
    assert 435 not in allowed  # clone3 is missing, so that libraries use clone
    assert _verdict(machine, audit, 0x40000000 | numbers["read"]) == MISSING


def test_other_machines_have_no_filter():
    with pytest.raises(OSError, match="riscv64"):
        seccomp.program("riscv64", 1)
