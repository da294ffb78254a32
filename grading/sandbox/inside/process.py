"""The inside of a confined process: layers first, then one JSON line in and one out, for ever.

`forkserver` forks it. The module it serves is imported already; its `handler()` gives the function
that answers messages. Descriptors 0 and 1 are files of the grader, 3 is the socket it talks on.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from grading.sandbox.inside import kernel, seccomp
from grading.sandbox.inside.limits import Limits

Handler = Callable[[dict[str, Any]], dict[str, Any]]
READ_BYTES = 1 << 16  # of a message at once; for more, malloc would map memory anew each time
_SOCKET = 3


@dataclass(frozen=True)
class Setting:
    """What all processes of a server share."""

    level: str
    handle: Handler
    places: list[kernel.Place]  # open, that may be read
    work: str  # at full, where each process mounts its own working directory; else their parent


def main(
    setting: Setting, limits: Limits, folder: str | None, descriptors: tuple[int, int, int]
) -> None:
    """Serve until the other side closes the socket. `descriptors`: input, output, socket.

    `folder`: the working directory; None at full.
    """
    os.setsid()
    kernel.die_with_parent()
    _place(descriptors)
    try:
        missing = _confine(setting, limits, folder or setting.work)
    except Exception as error:  # noqa: BLE001 - told to the other side, which ends the run
        send(_SOCKET, {"failed": f"{type(error).__name__}: {error}"})
        return
    send(_SOCKET, {"missing": missing})
    while (message := _receive()) is not None:
        try:
            reply = setting.handle(message)
        except MemoryError:
            reply = {"error": "memory limit"}
        send(_SOCKET, reply)


def _place(descriptors: tuple[int, int, int]) -> None:
    """Put input, output and the socket where they belong; 2 is the server's own /dev/null."""
    high = [os.dup2(descriptor, 100 + i) for i, descriptor in enumerate(descriptors)]
    for descriptor, place in zip(high, (0, 1, _SOCKET), strict=True):
        os.dup2(descriptor, place)


def _confine(setting: Setting, limits: Limits, work: str) -> list[str]:
    """Put on all layers that work here. Returns what does not; canaries judge whether it matters.

    Only a process in namespaces of its own fails where it can't be put there.
    """
    missing: list[str] = []

    def put_on(layer: Callable[[], None]) -> None:
        try:
            layer()
        except OSError as error:
            missing.append(str(error.strerror))

    if setting.level == "full":
        kernel.enter_own_namespaces(work)
    os.chdir(work)
    if setting.level != "none":
        put_on(kernel.drop_privileges)
        put_on(lambda: kernel.landlock(setting.places, work))
    os.closerange(_SOCKET + 1, 4096)  # the server holds a few dozen
    if setting.level != "none":
        kernel.limit(limits)
        put_on(seccomp.restrict)
    return missing


def _receive() -> dict[str, Any] | None:
    received = bytearray()
    while not received.endswith(b"\n"):
        chunk = os.read(_SOCKET, READ_BYTES)
        if not chunk:
            return None
        received += chunk
    message: dict[str, Any] = json.loads(received)
    return message


def send(socket: int, reply: dict[str, Any]) -> None:
    """Write a reply as one line."""
    line = json.dumps(reply).encode() + b"\n"
    while line:
        line = line[os.write(socket, line) :]
