"""Which sandbox levels hold on this machine, found by trying them.

A level holds if its processes start and none of the `canaries` run in one gets through.
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

from grading.sandbox.forkserver import ForkServer, ForkServerGone
from grading.sandbox.inside.canaries import CANARIES
from grading.sandbox.inside.limits import Limits
from grading.sandbox.process import Confined
from grading.sandbox.types import ProcessEnded, SandboxError

LEVELS = ("full", "kernel", "bwrap", "container", "none")  # strongest first
_AUTOMATIC = LEVELS[:3]  # the others are used only if the user selects them
_LIMITS = Limits(memory=1 << 30, cpu=10)
_CANARY_S = 10.0


@dataclass(frozen=True)
class ProbeResult:
    """The level that holds, if any, and why not a stronger one."""

    level: str | None
    reason: str  # why no level holds, or no stronger one
    canaries: Mapping[str, str] = field(default_factory=dict)  # name: "held" or "open"


def require_known(*names: str) -> None:
    """Raises: ValueError naming a level that does not exist."""
    for name in names:
        if name not in (*LEVELS, "auto"):
            raise ValueError(f"unknown sandbox level {name!r} (known: auto, {', '.join(LEVELS)})")


def find(level: str, minimum: str) -> ProbeResult:
    """Try a level, or for "auto" all of them from the strongest down to `minimum`.

    kernel and bwrap count as equal: where either holds, the same canaries are held.
    """
    if sys.platform != "linux":
        return ProbeResult(None, "programs can be confined on Linux only")
    if level in ("container", "none"):
        return _probe_selected(level)
    candidates = (
        (level,) if level != "auto" else _AUTOMATIC[:1] if minimum == "full" else _AUTOMATIC
    )
    failures: list[str] = []
    canaries: Mapping[str, str] = {}
    for name in candidates:
        try:
            canaries, missing = _try(name)
        except SandboxError as error:
            failures.append(f"{name}: {error}")
            continue
        leaks = [canary for canary, outcome in canaries.items() if outcome == "open"]
        if not leaks:
            return ProbeResult(name, "; ".join(failures), canaries)
        failures.append(f"{name}: does not hold: {', '.join([*leaks, *missing])}")
    return ProbeResult(None, "; ".join(failures), canaries)


def _probe_selected(level: str) -> ProbeResult:
    """A level that is used because the user selected it, whichever canaries get through."""
    try:
        canaries, missing = _try(level)
    except SandboxError as error:
        return ProbeResult(None, f"{level}: {error}")
    return ProbeResult(level, "; ".join(["selected by the user", *missing]), canaries)


def _try(level: str) -> tuple[dict[str, str], list[str]]:
    """The outcome of each canary at a level, and the layers that are missing."""
    with ExitStack() as stack:
        target = stack.enter_context(_targets())
        server = ForkServer("grading.sandbox.inside.canaries", level)
        stack.callback(server.close)
        try:
            process = stack.enter_context(Confined(server, _LIMITS, lambda process: None))
        except ForkServerGone as error:
            raise SandboxError("the fork server ends at once") from error
        outcomes = {}
        for name in CANARIES:
            try:
                reply = process.ask({"canary": name, "target": target}, _CANARY_S)
                outcomes[name] = "held" if reply == {"open": False} else "open"
            except ProcessEnded:
                # only the last canary may end the process; after another, all that follow are open
                outcomes[name] = "open"
        return outcomes, process.missing


@contextmanager
def _targets() -> Iterator[dict[str, Any]]:
    """Harmless files, sockets and limits that a confined process must not get past."""
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
