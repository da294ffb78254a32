"""Every lookalike is written by the real tool, and only its first bytes are examined."""

import bz2
import gzip
import io
import json
import lzma
import pickle
import tarfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save

from ref_dsinfer import lookalike
from ref_dsinfer.lookalike import HEAD, instead_of, what_it_is

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 15614560\n"


def archive(kind: str) -> bytes:
    buffer = io.BytesIO()
    if kind == "tar":
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            tar.addfile(tarfile.TarInfo("weights"), io.BytesIO())
    elif kind == "zip":
        with zipfile.ZipFile(buffer, "w") as packed:
            packed.writestr("weights", b"x")
    elif kind == "parquet":
        pq.write_table(pa.table({"a": [1]}), buffer)
    else:
        torch.save({"a": torch.ones(2)}, buffer, _use_new_zipfile_serialization=kind == "torch")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty: download it again"),
        (b"\0" * 4096, "nothing but zero bytes"),
        (b" \n", "blank"),
        (POINTER, "a git-lfs pointer, not the file itself: run `git lfs pull`"),
        (b"\n<!DOCTYPE html>\n<html><body>Sign in</body></html>", "an HTML page"),
        (b"<!-- x -->\n<HTML lang='en'>", "an HTML page"),
        (b'\xef\xbb\xbf<html class="x">', "an HTML page"),
        (gzip.compress(b"x", mtime=0), "compressed by gzip: unpack it"),
        (bz2.compress(b"x"), "compressed by bzip2"),
        (lzma.compress(b"x"), "compressed by xz"),
        (pa.compress(b"x" * 99, codec="zstd", asbytes=True), "compressed by zstd"),
        (archive("zip"), "a zip archive"),
        (archive("tar"), "a tar archive"),
        (archive("parquet"), lookalike.PARQUET),
        (archive("torch"), "what torch.save writes"),
        (archive("older torch"), "what torch.save writes"),
        (save({"a": torch.ones(2)}), lookalike.SAFETENSORS),
        (pickle.dumps([1], protocol=2), lookalike.PICKLE),
        (pickle.dumps([1]), lookalike.PICKLE),
        (b'{"error": "Access to model x is restricted"}', "a server's error message, '{\"error\""),
        (b'{"message":"Not Found","status":"404"}', "a server's error message"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "XML"),
        (json.dumps({"vocab_size": 3}).encode(), lookalike.JSON),
        (b'{"question": "x"}\n{"question": "y"}\n', lookalike.JSON),
        ("\ufeff{}".encode("utf-16-le"), "text in UTF-16"),
        (b"Entry not found\n", "text that begins 'Entry not found'"),
        (b"word " * 200, "text that begins 'word word"),
    ],
)
def test_a_file_is_recognised_by_its_head(content: bytes, message: str) -> None:
    phrase = what_it_is(content[:HEAD])
    assert phrase
    assert phrase.startswith(message)
    assert phrase.isascii()
    assert phrase.isprintable()


@pytest.mark.parametrize(
    "content", [b"\x80", b"\x00\x01", b"\xff" * 9, bytes(range(256)), b"\x1b[2J"]
)
def test_what_is_unknown_is_not_guessed_at(content: bytes) -> None:
    assert what_it_is(content) is None


def test_a_message_quotes_no_escape_sequence() -> None:
    phrase = what_it_is(b'{"error": "\x1b]0;title\x07 \xe4\xb8\xad"}')
    assert phrase
    assert phrase.isascii()
    assert phrase.isprintable()


def test_its_own_kind_is_nothing_to_tell(tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_bytes(POINTER)
    assert "git lfs pull" in str(instead_of(file, lookalike.PARQUET))
    file.write_bytes(archive("parquet"))
    assert instead_of(file, lookalike.PARQUET) is None
    assert instead_of(file, lookalike.PICKLE) == lookalike.PARQUET
