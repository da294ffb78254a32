"""The limits of a confined process, shared by both sides of the sandbox."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Resource limits, and a number of processes that the supervisor watches."""

    memory: int = 4 << 30  # bytes of address space
    cpu: int = 3600  # seconds
    file: int = 32 << 20  # bytes of any file written, standard output included
    descriptors: int = 64  # open files
    processes: int = 512  # threads, and processes at levels that allow them
