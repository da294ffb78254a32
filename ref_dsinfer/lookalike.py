"""What a file really is that has another's name: a git-lfs pointer, an error page, an archive.

Nothing here decides whether a file is good. Its reader does, and asks here for a better message
once it has failed, or before it parses what does not begin as it should.
"""

import json
import re
from pathlib import Path
from typing import Any

from errors import ModelError, UserError

HEAD = 512  # bytes that are enough: the farthest mark, a tar's, is at 257

PICKLE, PARQUET, SAFETENSORS, JSON = "a pickle", "a Parquet file", "a safetensors file", "JSON text"

GZIP = b"\x1f\x8b"
UNPACK = "unpack it, and name what was in it"
AGAIN = "download it again"
# How a file begins, and the phrase for it.
BEGINNINGS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "a git-lfs pointer, not the file itself: run `git lfs pull`"),
    (GZIP, f"compressed by gzip: {UNPACK}"),
    (b"\xfd7zXZ\x00", f"compressed by xz: {UNPACK}"),
    (b"\x28\xb5\x2f\xfd", f"compressed by zstd: {UNPACK}"),
    (b"\x04\x22\x4d\x18", f"compressed by lz4: {UNPACK}"),
    (b"BZh", f"compressed by bzip2: {UNPACK}"),
    (b"7z\xbc\xaf\x27\x1c", f"a 7-Zip archive: {UNPACK}"),
    (b"Rar!\x1a\x07", f"a RAR archive: {UNPACK}"),
    (b"PAR1", PARQUET),
    (b"ARROW1", "an Arrow (Feather) file"),
    (b"GGUF", "a GGUF file (llama.cpp's format)"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy array (.npy)"),
    (b"SQLite format 3\x00", "an SQLite database"),
    (b"%PDF-", "a PDF document"),
    (b"\x7fELF", "a program (ELF)"),
)
TAR_MARK = slice(257, 262)
TORCH_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save before version 1.6
LARGEST_HEADER = 100_000_000  # bytes, the safetensors library's own limit
HTML = re.compile(rb"(<!--.*?-->\s*)?<(!doctype html|html|head|body|script|meta)\b", re.I | re.S)
ERROR_BODY = re.compile(rb'\{\s*"(error|message|detail|status|statusCode|code)"\s*:')
WORDS = re.compile(rb"[\t\r\n\x20-\x7e]+")


def what_it_is(head: bytes) -> str | None:
    """A phrase that completes "it is", with what to do about it; None if the kind is unknown.

    `head` is the file's first HEAD bytes, or all of a shorter one. Text from the file is quoted in
    ASCII, so that it may go to a terminal.
    """
    if not head:
        return f"empty: {AGAIN}"
    if not head.strip(b"\x00"):
        return f"nothing but zero bytes, as an interrupted copy leaves: {AGAIN}"
    for beginning, phrase in BEGINNINGS:
        if head.startswith(beginning):
            return phrase
    if head.startswith(b"PK\x03\x04"):
        return "what torch.save writes" if b"data.pkl" in head else f"a zip archive: {UNPACK}"
    if head[TAR_MARK] == b"ustar":
        return f"a tar archive: {UNPACK}"
    if head.startswith(TORCH_MAGIC):
        return "what torch.save writes"
    if head[0] == 0x80 and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return PICKLE
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= LARGEST_HEADER:
        return SAFETENSORS
    return _what_text_it_is(head)


def _what_text_it_is(head: bytes) -> str | None:
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "text in UTF-16: save it as UTF-8"
    text = head.removeprefix(b"\xef\xbb\xbf").strip()
    if HTML.match(text):
        return f"an HTML page, such as a sign-in or error page: {AGAIN}, signed in if need be"
    if ERROR_BODY.match(text):
        return f"a server's error message, {_quoted(text)}: {AGAIN}"
    if text.startswith(b"<?xml") or text.startswith(b"<Error>"):
        return f"XML, such as an object store's error message, {_quoted(text)}: {AGAIN}"
    if text.startswith((b"{", b"[")):
        return JSON
    if WORDS.fullmatch(head):
        return f"text that begins {_quoted(text)}" if text else f"blank: {AGAIN}"
    return None


def _quoted(text: bytes) -> str:
    line = text.decode("utf-8", errors="replace").splitlines()[0]
    return ascii(line if len(line) <= 60 else line[:60] + "…").replace("\\u2026", "...")


def instead_of(path: Path, own: str) -> str | None:
    """What the file is instead of its `own` kind (PICKLE, PARQUET, …); None if unknown.

    Raises: OSError.
    """
    with path.open("rb") as file:
        phrase = what_it_is(file.read(HEAD))
    return None if phrase == own else phrase


def read_object(path: Path, error: type[UserError] = ModelError) -> dict[str, Any]:
    """Read a JSON file that holds one object. Raises: `error`, saying what the file is instead."""
    try:
        content = path.read_bytes()
        value = json.loads(content)
    except OSError as failure:
        raise error(f"{path} can't be read: {failure.strerror}") from failure
    except (ValueError, RecursionError) as failure:
        if (phrase := what_it_is(content[:HEAD])) not in (JSON, None):
            raise error(f"{path} is {phrase}") from failure
        raise error(f"{path} can't be read as JSON: {failure}") from failure
    if not isinstance(value, dict):
        raise error(f"{path} is not a JSON object")
    return value


def check_json(path: Path, error: type[UserError] = ModelError) -> None:
    """Refuse a file that does not even begin as JSON, before a parser with a worse message does.

    Raises: `error`.
    """
    try:
        phrase = instead_of(path, JSON)
    except OSError as failure:
        raise error(f"{path} can't be read: {failure.strerror}") from failure
    if phrase:
        raise error(f"{path} is {phrase}")
