"""The inside of a confined process: limits first, then one JSON line in and one out, for ever.

`sandbox.Confined` starts this file by its path, with the standard library alone. The module it
names is imported, and its `handler()` gives the function that answers messages.
"""

import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

Handler = Callable[[dict[str, Any]], dict[str, Any]]


def main() -> None:
    """Serve until the other side closes the socket."""
    task = json.loads(sys.argv.pop())
    _die_with(task["parent"])
    _limit(**task["limits"])
    try:
        handle = _handler(task)
    except Exception as error:  # noqa: BLE001 - told to the other side, which ends the run
        _send(task["socket"], {"failed": f"{type(error).__name__}: {error}"})
        return
    _send(task["socket"], {"ready": True})
    while (message := _receive(task["socket"])) is not None:
        try:
            reply = handle(message)
        except MemoryError:
            reply = {"error": "memory limit"}
        _send(task["socket"], reply)


def _handler(task: dict[str, Any]) -> Handler:
    sys.path += task["packages"]
    sys.path.append(task["root"])
    try:
        handler: Handler = import_module(task["module"]).handler()
    finally:
        sys.path.remove(task["root"])
    return handler


def _limit(memory: int, cpu: int, file: int, descriptors: int, processes: int) -> None:
    for which, value in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, cpu),
        (resource.RLIMIT_FSIZE, file),
        (resource.RLIMIT_NOFILE, descriptors),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(which)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (value, value))


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when the one that started it is gone."""
    if sys.platform != "linux":
        return
    import ctypes

    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the parent is gone")
    for name in ("ctypes", "ctypes._endian", "_ctypes"):
        del sys.modules[name]  # so that a handler's guard sees any later import


def _receive(socket: int) -> dict[str, Any] | None:
    received = bytearray()
    while not received.endswith(b"\n"):
        chunk = os.read(socket, 1 << 20)
        if not chunk:
            return None
        received += chunk
    message: dict[str, Any] = json.loads(received)
    return message


def _send(socket: int, reply: dict[str, Any]) -> None:
    line = json.dumps(reply).encode() + b"\n"
    while line:
        line = line[os.write(socket, line) :]


if __name__ == "__main__":
    main()
