"""Room on the disk, looked at before anything is downloaded."""

import shutil
from pathlib import Path

from errors import OutputError

GIB = 1 << 30
SPARE = 64 << 20  # bytes that are left free


def require_space(folder: Path, needed: int, name: str) -> None:
    """Raises: OutputError if the disk of `folder` has less than `needed` bytes free, and some."""
    free = shutil.disk_usage(folder).free
    if needed and needed + SPARE > free:
        raise OutputError(
            f"{folder}: {name} needs {needed / GIB:.1f} GiB more, and {free / GIB:.1f} GiB are"
            " free: free some, or choose another folder (--output-dir; HF_HOME for models)"
        )
