"""What both sides of the sandbox agree on: limits, and how it fails."""

from dataclasses import dataclass

from ref_dsinfer.errors import GradingError


@dataclass(frozen=True)
class Limits:
    """What a confined process is held to."""

    memory: int = 4 << 30  # bytes of address space
    cpu: int = 3600  # seconds
    file: int = 32 << 20  # bytes of any file written, standard output included
    descriptors: int = 64  # open files
    processes: int = 512  # threads, and processes where they are allowed at all


class SandboxError(GradingError):
    """No process can be started: nothing that needs one can be graded."""


class Ended(Exception):
    """A confined process will not answer any more: it ended, or broke the protocol."""


class TimeLimit(Ended):
    """A confined process took too long."""
