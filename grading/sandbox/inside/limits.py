"""What a confined process is held to, as both sides of the sandbox say it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Hard limits, and a number of processes that is watched."""

    memory: int = 4 << 30  # bytes of address space
    cpu: int = 3600  # seconds
    file: int = 32 << 20  # bytes of any file written, standard output included
    descriptors: int = 64  # open files
    processes: int = 512  # threads, and processes where they are allowed at all
