"""Keep a command from overwriting its own input files."""

from collections.abc import Iterable
from pathlib import Path

from errors import UsageError


def keep_inputs(outputs: Iterable[Path], inputs: Iterable[Path | None]) -> None:
    """Raises: UsageError if an output is the same file as an input, under this or another name."""
    sources = [path for path in inputs if path is not None and path.exists()]
    for output in outputs:
        for source in sources:
            if output.exists() and output.samefile(source):
                raise UsageError(
                    f"{output} would overwrite the input {source}: choose another --output-file"
                )
