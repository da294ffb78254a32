"""Files that appear under their name whole, or not at all; and their hashes."""

import hashlib
import json
import os
import secrets
from array import array
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from errors import ModelError, OutputError

TAIL_BYTES = 4096  # of a weight file: enough to tell two trainings of one model apart


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


def write_text(path: Path, text: str | Iterable[str]) -> None:
    """Write UTF-8 text, whole or in pieces. Raises: OutputError; what making a piece raises."""

    def write(partial: Path) -> None:
        with partial.open("w", encoding="utf-8") as file:
            file.writelines([text] if isinstance(text, str) else text)

    write_whole(path, write)


def write_json(path: Path, value: Any, default: Callable[[Any], Any] | None = None) -> None:
    """Write indented JSON; `default` converts what JSON has no type for. Raises: OutputError."""
    write_text(path, json.dumps(value, indent=2, default=default) + "\n")


def sha256(path: Path) -> str:
    """The SHA-256 hash of a file, in hexadecimal. Raises: OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def combined_sha256(parts: Iterable[bytes | array | Path]) -> str:
    """A short SHA-256 hash of several parts; a path stands for the content of its file.

    Raises: OSError.
    """
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.read_bytes() if isinstance(part, Path) else part)
        digest.update(b"\0")  # parts that are split elsewhere differ
    return f"sha256:{digest.hexdigest()[:16]}"


def fingerprint(model_dir: Path) -> str:
    """A hash that tells models apart: of a directory's small files, and of each weight file's name,
    size and last bytes. R1 and its later revision differ in nothing but the weights' values.

    Raises: ModelError for a file that can't be read.
    """
    parts: list[bytes | array | Path] = []
    for path in sorted(model_dir.glob("*.json")):
        parts += [path.name.encode(), path]
    try:
        for path in sorted(model_dir.glob("*.safetensors")):
            with path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - TAIL_BYTES))
                parts += [f"{path.name} {size}".encode(), file.read()]
        return combined_sha256(parts)
    except OSError as error:
        raise ModelError(f"{error.filename} can't be read: {error.strerror}") from error
