"""Room on the disk, looked at before anything is downloaded."""

import shutil
from pathlib import Path

from errors import OutputError

MIB, GIB = 1 << 20, 1 << 30
SPARE = 64 * MIB  # bytes that are left free


def size(count: int) -> str:
    """A number of bytes, for people."""
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / MIB:.1f} MiB"


def require_space(folder: Path, needed: int, name: str) -> None:
    """Raises: OutputError if the disk of `folder` has less than `needed` bytes free, and some."""
    free = shutil.disk_usage(folder).free
    if needed > 0 and needed + SPARE > free:
        raise OutputError(
            f"{folder}: {name} needs {size(needed)} more, and {size(free)} are free: free some, or"
            " choose another folder (--output-dir; HF_HOME for model and problems)"
        )
