"""How well programs can be confined on this machine, found by trying.

A level holds when its processes start and none of the `canaries` run in one gets through.
"""

import os
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grading.sandbox.host import Host, HostGone
from grading.sandbox.inside.canaries import CANARIES
from grading.sandbox.inside.limits import Limits
from grading.sandbox.process import Confined
from grading.sandbox.types import Ended, SandboxError

LEVELS = ("full", "kernel", "bwrap", "container", "none")  # from the strongest
_FOUND = LEVELS[:3]  # the others are a user's word
_LIMITS = Limits(memory=1 << 30, cpu=10)
_CANARY_S = 10.0


@dataclass(frozen=True)
class Found:
    """The level that holds, if one does, and what was seen on the way to it."""

    level: str | None
    reason: str  # why nothing holds, or nothing stronger
    canaries: Mapping[str, str] = field(default_factory=dict)  # name: "held" or "open"


def require_known(*names: str) -> None:
    """Raises: ValueError if there is no such level."""
    for name in names:
        if name not in (*LEVELS, "auto"):
            raise ValueError(f"{name!r} is no level of the sandbox ({', '.join(LEVELS)})")


def find(level: str, minimum: str) -> Found:
    """Try a level, or for "auto" all from the strongest down to `minimum`.

    bwrap stands beside kernel: where it holds, the same canaries are held.
    """
    if sys.platform != "linux":
        return Found(None, "programs can be confined on Linux only")
    if level in ("container", "none"):
        return _asserted(level)
    tried = (level,) if level != "auto" else _FOUND[:1] if minimum == "full" else _FOUND
    failures: list[str] = []
    canaries: Mapping[str, str] = {}
    for name in tried:
        try:
            canaries, missing = _try(name)
        except SandboxError as error:
            failures.append(f"{name}: {error}")
            continue
        leaks = [canary for canary, outcome in canaries.items() if outcome == "open"]
        if not leaks:
            return Found(name, "; ".join(failures), canaries)
        failures.append(f"{name}: not held: {', '.join([*leaks, *missing])}")
    return Found(None, "; ".join(failures), canaries)


def _asserted(level: str) -> Found:
    """A level that is used whatever gets through."""
    try:
        canaries, missing = _try(level)
    except SandboxError as error:
        return Found(None, f"{level}: {error}")
    return Found(level, "; ".join(["asked for", *missing]), canaries)


def _try(level: str) -> tuple[dict[str, str], list[str]]:
    """The outcome of each canary at a level, and the layers that are missing there."""
    with ExitStack() as stack:
        target = stack.enter_context(_targets())
        host = Host("grading.sandbox.inside.canaries", level)
        stack.callback(host.close)
        try:
            process = stack.enter_context(Confined(host, _LIMITS, lambda process: None))
        except HostGone as error:
            raise SandboxError("the process that starts others ends at once") from error
        outcomes = {}
        for name in CANARIES:
            try:
                reply = process.ask({"canary": name, "target": target}, _CANARY_S)
                outcomes[name] = "held" if reply == {"open": False} else "open"
            except Ended:
                outcomes[name] = "open"  # only the last one may end it; after another, all count
        return outcomes, process.missing


@contextmanager
def _targets() -> Iterator[dict[str, Any]]:
    """Things of ours that a confined process must not reach, and harmless if it does."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="canary-"))
        secret = Path(folder, "secret")
        secret.write_text("secret")
        abstract = f"canary-{os.getpid()}-{Path(folder).name}"
        tcp, unix, hidden = (
            stack.enter_context(socket.socket(family))
            for family in (socket.AF_INET, socket.AF_UNIX, socket.AF_UNIX)
        )
        tcp.bind(("127.0.0.1", 0))
        unix.bind(f"{folder}/socket")
        hidden.bind("\0" + abstract)
        for listener in (tcp, unix, hidden):
            listener.listen()
        yield {
            "folder": folder,
            "secret": str(secret),
            "socket": f"{folder}/socket",
            "abstract": abstract,
            "port": tcp.getsockname()[1],
            "pid": os.getpid(),
            "memory": 2 * _LIMITS.memory,
            "file": 2 * _LIMITS.file,
        }
