"""A confined process: it applies the layers, then replies to each JSON line with another.

`forkserver` forks it. The module that it serves has been imported; the module's `handler()` returns
the function that answers messages. Descriptors 0 and 1 are files of the grader, 3 is the socket.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from grading.sandbox.inside import kernel, seccomp
from grading.sandbox.inside.limits import Limits

Handler = Callable[[dict[str, Any]], dict[str, Any]]
READ_BYTES = 1 << 16  # per read; for larger buffers malloc would map new memory each time
_SOCKET = 3


@dataclass(frozen=True)
class Setting:
    """The settings that all processes of a fork server share."""

    level: str
    handle: Handler
    rules: list[kernel.Rule]
    work: str  # at full the mount point of the working directory, else its parent


def main(
    setting: Setting, limits: Limits, folder: str | None, descriptors: tuple[int, int, int]
) -> None:
    """Serve until the grader closes the socket.

    `folder`: the working directory; None at full. `descriptors`: input, output, socket.
    """
    os.setsid()
    kernel.die_with_parent()
    _move(descriptors)
    try:
        missing = _confine(setting, limits, folder or setting.work)
    except Exception as error:  # noqa: BLE001 - reported to the grader, which ends the run
        send(_SOCKET, {"failed": f"{type(error).__name__}: {error}"})
        return
    send(_SOCKET, {"missing": missing})
    while (message := _receive()) is not None:
        try:
            reply = setting.handle(message)
        except MemoryError:
            reply = {"error": "memory limit"}
        send(_SOCKET, reply)


def _move(descriptors: tuple[int, int, int]) -> None:
    """Make input, output and the socket descriptors 0, 1 and 3; 2 is the server's /dev/null."""
    copies = [os.dup2(descriptor, 100 + i) for i, descriptor in enumerate(descriptors)]
    for copy, number in zip(copies, (0, 1, _SOCKET), strict=True):
        os.dup2(copy, number)


def _confine(setting: Setting, limits: Limits, work: str) -> list[str]:
    """Apply all layers that work on this machine.

    Returns an error message for each one that does not; the canaries decide whether that matters.
    Raises: OSError if the namespaces of level full can't be entered.
    """
    missing: list[str] = []

    def attempt(layer: Callable[[], None]) -> None:
        try:
            layer()
        except OSError as error:
            missing.append(str(error.strerror))

    if setting.level == "full":
        kernel.unshare_mounts(work)
    os.chdir(work)
    if setting.level != "none":
        attempt(kernel.drop_privileges)
        attempt(lambda: kernel.landlock(setting.rules, work))
    os.closerange(_SOCKET + 1, 4096)  # the server holds a few dozen
    if setting.level != "none":
        kernel.limit(limits)
        attempt(seccomp.restrict)
    return missing


def _receive() -> dict[str, Any] | None:
    line = bytearray()
    while not line.endswith(b"\n"):
        chunk = os.read(_SOCKET, READ_BYTES)
        if not chunk:
            return None
        line += chunk
    message: dict[str, Any] = json.loads(line)
    return message


def send(socket: int, reply: dict[str, Any]) -> None:
    """Write a reply as one line."""
    line = json.dumps(reply).encode() + b"\n"
    while line:
        line = line[os.write(socket, line) :]
