"""Files that appear under their name whole, or not at all; and their hashes."""

import hashlib
import json
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from errors import OutputError


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a hidden file beside `path`, flush it to disk, and rename it to `path`.

    Of several writers at once, each has a hidden file of its own, and the last rename wins. If the
    process is killed, its hidden file stays and can be deleted.
    Raises: OutputError; `path` is then as it was.
    """
    # not by tempfile, whose files only their owner can read
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        try:
            write(partial)
            with partial.open("rb") as file:
                os.fsync(file.fileno())  # before the rename, or a power cut could leave it empty
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{path}: can't be written: {error.strerror or error}") from error


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text. Raises: OutputError."""
    write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any, default: Callable[[Any], Any] | None = None) -> None:
    """Write indented JSON; `default` converts what JSON has no type for. Raises: OutputError."""
    write_text(path, json.dumps(value, indent=2, default=default) + "\n")


def sha256(path: Path) -> str:
    """The SHA-256 hash of a file, in hexadecimal. Raises: OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
