"""Files that a command reads and files that it writes."""

from collections.abc import Iterable
from pathlib import Path

from errors import UsageError


def keep_inputs(written: Iterable[Path], read: Iterable[Path | None]) -> None:
    """Errors: UsageError where what would be written is a file that is read, by whatever name."""
    there = [path for path in read if path is not None and path.exists()]
    for output in written:
        for source in there:
            if output.exists() and output.samefile(source):
                raise UsageError(
                    f"{output} would be written over {source}, which is read: name"
                    " another --output-file"
                )
