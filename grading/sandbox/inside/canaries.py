"""Small attacks on harmless targets, run in a confined process to test whether its level holds.

Each is a function of the targets that the grader has prepared (see `levels`). It got through if it
returns anything but False and raises no OSError or MemoryError. The canaries test what a level
must prevent, not the layer that prevents it: a layer that the kernel lacks, or that an outer
container takes away, shows.
"""

import ctypes
import errno
import mmap
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Target = dict[str, Any]


def handler() -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Replies to `{"canary": name, "target": {…}}` with `{"open": bool}`."""
    return lambda message: {"open": _gets_through(CANARIES[message["canary"]], message["target"])}


def _gets_through(attack: Callable[[Target], object], target: Target) -> bool:
    try:
        return attack(target) is not False
    except (OSError, MemoryError):
        return False


def _call(number: dict[str, int], *arguments: int) -> bool:
    """Whether a system call gets as far as the kernel's check of its arguments."""
    libc = ctypes.CDLL(None, use_errno=True)
    values = map(ctypes.c_long, (number[os.uname().machine], *arguments))
    return libc.syscall(*values) >= 0 or ctypes.get_errno() in (errno.EFAULT, errno.EINVAL)


def _connect(target: Target) -> None:
    socket.create_connection(("127.0.0.1", target["port"]), 1).close()


def _send(target: Target) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"x", ("127.0.0.1", target["port"]))


def _unix(target: Target) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(target["socket"])


def _abstract(target: Target) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect("\0" + target["abstract"])


def _memory_of_another(target: Target) -> bool:
    nothing = 0
    one = (ctypes.c_size_t * 2)(0, 1)  # an address that no process has
    numbers = {"x86_64": 310, "aarch64": 270}  # process_vm_readv
    return _call(
        numbers, target["pid"], ctypes.addressof(one), 1, ctypes.addressof(one), 1, nothing
    )


def _fork(_target: Target) -> None:
    if (child := os.fork()) == 0:
        os._exit(0)
    os.waitpid(child, 0)


def _namespace(_target: Target) -> bool:
    return ctypes.CDLL(None).unshare(0x10000000) == 0  # CLONE_NEWUSER


def _mount(target: Target) -> bool:
    libc, folder = ctypes.CDLL(None), target["folder"].encode()
    if libc.mount(b"x", folder, b"tmpfs", ctypes.c_ulong(0), None):
        return False
    libc.umount2(folder, 0)
    return True


def _descriptors(_target: Target) -> bool:
    for descriptor in range(4, 1024):
        try:
            os.fstat(descriptor)
        except OSError:
            continue
        return True
    return False


def _memory(target: Target) -> None:
    mmap.mmap(-1, target["memory"]).close()


def _file(target: Target) -> None:
    os.ftruncate(1, target["file"])
    os.ftruncate(1, 0)


def _execute(_target: Target) -> None:
    os.execv(sys.executable, [sys.executable, "-c", ""])  # if it works, there is no reply


CANARIES: dict[str, Callable[[Target], object]] = {
    "TCP connection": _connect,
    "UDP packet": _send,
    "unix socket": _unix,
    "abstract socket": _abstract,
    "reading a file outside": lambda target: Path(target["secret"]).read_bytes(),
    "listing a folder outside": lambda target: list(Path(target["folder"]).iterdir()),
    "writing a file outside": lambda target: Path(target["folder"], "new").touch(),
    "changing a file's mode": lambda target: Path(target["secret"]).chmod(0o600),
    "environment of the grader": lambda target: Path(f"/proc/{target['pid']}/environ").read_bytes(),
    "memory of the grader": _memory_of_another,
    "signal to the grader": lambda target: os.kill(target["pid"], 0),
    "fork": _fork,
    "mount": _mount,
    "io_uring": lambda target: _call({"x86_64": 425, "aarch64": 425}, 1, 0),
    "bpf": lambda target: _call({"x86_64": 321, "aarch64": 280}, 0, 0, 0),
    "key ring": lambda target: _call({"x86_64": 250, "aarch64": 219}, 0, -3, 1),
    "inherited descriptor": _descriptors,
    "memory limit": _memory,
    "file size limit": _file,
    "user namespace": _namespace,
    "execution": _execute,
}
