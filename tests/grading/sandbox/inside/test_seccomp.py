"""The filter of system calls for every architecture, interpreted as the kernel would."""

import errno
import struct

import pytest

from grading.sandbox.inside import seccomp

ALLOW, REFUSE, MISSING, KILL = 0x7FFF0000, 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS, 1 << 31


def _verdict(machine: str, audit: int, number: int, *arguments: int, pid: int = 7) -> int:
    """The filter's return value, interpreted as the kernel would."""
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
def test_the_filter_allows_what_is_listed_and_nothing_else(
    machine: str, audit: int, numbers: dict[str, int]
) -> None:
    def verdict(name: str, *arguments: int) -> int:
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


def test_other_machines_have_no_filter() -> None:
    with pytest.raises(OSError, match="riscv64"):
        seccomp.program("riscv64", 1)
