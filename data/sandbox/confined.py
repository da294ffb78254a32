"""The inside of a confined process: layers first, then one JSON line in and one out, for ever.

`forkserver` forks it. The module it serves is imported already; its `handler()` gives the function
that answers messages. Descriptors 0 and 1 are files of the grader, 3 is the socket it talks on.
"""

import json
import os
import sys
from collections.abc import Callable
from typing import Any

from data.sandbox import kernel, seccomp
from data.sandbox.types import Limits

Handler = Callable[[dict[str, Any]], dict[str, Any]]
_SOCKET = 3


def main(
    task: dict[str, Any], limits: Limits, work: str, descriptors: tuple[int, int, int]
) -> None:
    """Serve until the other side closes the socket. `descriptors`: input, output, socket."""
    os.setsid()
    kernel.die_with_parent()
    _place(descriptors)
    os.chdir(work)
    try:
        missing = _confine(task["level"], limits, task["readable"], work)
        handle: Handler = sys.modules[task["module"]].handler()
    except Exception as error:  # noqa: BLE001 - told to the other side, which ends the run
        send(_SOCKET, {"failed": f"{type(error).__name__}: {error}"})
        return
    send(_SOCKET, {"missing": missing})
    while (message := _receive()) is not None:
        try:
            reply = handle(message)
        except MemoryError:
            reply = {"error": "memory limit"}
        send(_SOCKET, reply)


def _place(descriptors: tuple[int, int, int]) -> None:
    """Leave four descriptors open, the third being the server's own /dev/null."""
    high = [os.dup2(descriptor, 100 + i) for i, descriptor in enumerate(descriptors)]
    for descriptor, place in zip(high, (0, 1, _SOCKET), strict=True):
        os.dup2(descriptor, place)
    os.closerange(_SOCKET + 1, 4096)  # the server holds a dozen
    sys.stdin = sys.__stdin__ = os.fdopen(  # type: ignore[misc]
        0, encoding="utf-8", closefd=False
    )
    sys.stdout = sys.__stdout__ = os.fdopen(  # type: ignore[misc]
        1, "w", encoding="utf-8", closefd=False
    )


def _confine(level: str, limits: Limits, readable: list[str], work: str) -> list[str]:
    """Put on all layers that work here. Returns what does not; canaries judge whether it matters.

    Only a process in namespaces of its own fails where it can't be put there.
    """
    missing: list[str] = []
    if level == "none":
        return missing
    if level == "full":
        kernel.mount_proc()
    kernel.limit(limits)
    for layer in (
        kernel.drop_privileges,
        lambda: kernel.landlock(readable, work),
        seccomp.restrict,
    ):
        try:
            layer()
        except OSError as error:
            missing.append(str(error.strerror))
    return missing


def _receive() -> dict[str, Any] | None:
    received = bytearray()
    while not received.endswith(b"\n"):
        chunk = os.read(_SOCKET, 1 << 20)
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
