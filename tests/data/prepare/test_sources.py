"""Sources: found in every place and format, or named all at once with what to do."""

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from hypothesis import given, settings
from hypothesis import strategies as st

from data.prepare.sources import SOURCES, find, read, sha256
from errors import ColumnsError, InputFileError
from tests.data.prepare import source_files

ROOT = Path(__file__).parents[3]


def test_every_format_has_the_same_rows(every_format: Path) -> None:
    for name, path in find(every_format).items():
        rows = source_files.rows_of(name)
        for row, expected in zip(read(path, SOURCES[name]), rows, strict=True):
            for column in SOURCES[name].columns:
                cell = row[column]
                if isinstance(expected[column], list) and isinstance(cell, str):
                    cell = json.loads(cell)
                assert cell == expected[column]


def test_sources_lie_as_in_their_repositories(repositories: Path) -> None:
    assert find(repositories)["gpqa"] == repositories / "gpqa" / "gpqa_diamond.csv"


def test_all_missing_sources_are_told_at_once(tmp_path: Path) -> None:
    source_files.write(source_files.rows_of("math500"), tmp_path / "math500.jsonl")
    with pytest.raises(InputFileError) as raised:
        find(tmp_path)
    first, *others = str(raised.value).splitlines()
    assert first == "8 of 9 sources are missing:"
    assert [line.split(":")[0].strip() for line in others] == [
        name for name in SOURCES if name != "math500"
    ]
    assert "aime.csv, aime.parquet, aime.jsonl, aime/AIME_Dataset_1983_2024.csv" in others[0]
    assert SOURCES["gpqa"].page in others[1]
    with pytest.raises(InputFileError, match="no such folder"):
        find(tmp_path / "none")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"Question,Answer\n1,2\n", "1 rows, but .*has 933"),
        ("a.csv", b"Question,Solution\n1,2\n", r"missing columns: Answer \(present: Question, Sol"),
        ("a.csv", b'Question,Answer\n"1', "not a .csv file: unexpected end of data"),
        ("a.csv", b"Question,Answer\n\xff,2\n", "not a .csv file: 'utf-8' codec"),
        ("a.csv", b"Question,Answer\n1\n", "Answer is missing in the row"),
        ("a.csv", b"", "missing columns: Question, Answer"),
        ("a.parquet", b"version https://git-lfs.github.com", "it is a git-lfs pointer"),
        ("a.parquet", b"PAR1" * 9, "not a .parquet file"),
        ("a.jsonl", b"<!doctype html>", "it is an HTML page"),
        ("a.jsonl", b"[1]\n", "line 1 is not an object"),
        ("a.jsonl", b'{"Question": "1", "Answer": null}\n', "Answer is missing"),
        (
            "a.jsonl",
            b'{"Question": 1, "Answer": 1}\n',
            "Question is int, not text, in the row",
        ),
        ("a.jsonl", b"[" * 100_000, "not a .jsonl file"),
    ],
    ids=range(13),
)
def test_a_file_that_is_something_else_says_so(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises((InputFileError, ColumnsError), match=message) as raised:
        read(tmp_path / name, SOURCES["aime"])
    assert str(raised.value).startswith(f"{tmp_path / name}: ")


@given(st.sampled_from(source_files.FORMATS), st.integers(0, 1 << 20), st.binary(max_size=9))
@settings(max_examples=60, deadline=None)
def test_damaged_files_are_an_error_or_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, ending: str, offset: int, damage: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / f"damaged{ending}"
    rows = source_files.rows_of("aime")[:20]
    content = bytearray(source_files.write(rows, path).read_bytes())
    offset %= len(content)
    content[offset : offset + len(damage)] = damage
    path.write_bytes(content[: offset + 20] if len(damage) % 2 else content)
    with contextlib.suppress(InputFileError, ColumnsError):
        assert len(read(path, replace(SOURCES["aime"], rows=20))) == 20


class Hub(BaseHTTPRequestHandler):
    """What the Hugging Face hub answers to who wants a file of a data set."""

    folder: Path
    refused: dict[str, tuple[int, str]]  # status and error code, by the name of a source

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        for name, source in SOURCES.items():
            place = f"/datasets/{source.repository}/resolve/{source.revision}/{source.path}"
            if self.path != place:
                continue
            if name in self.refused:
                status, code = self.refused[name]
                self.send_response(status)
                self.send_header("X-Error-Code", code)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            content = (self.folder / name / source.path).read_bytes()
            self.send_response(200)
            self.send_header("ETag", f'"{name}"')
            self.send_header("X-Repo-Commit", source.revision)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if with_body:
                self.wfile.write(content)
            return
        self.send_error(404)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def hub(repositories: Path) -> Iterator[ThreadingHTTPServer]:
    Hub.folder, Hub.refused = repositories, {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


FIND = """
import logging, sys
from data.prepare.sources import find
from errors import InputFileError
logging.disable()
try:
    print(*(f"{name}={path}" for name, path in find(None).items()), sep="\\n")
except InputFileError as error:
    sys.exit(str(error))
"""


def from_hub(port: int, cache: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """`find` in a process of its own: the library reads its variables when it is imported."""
    environment = {"HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HOME": str(cache), **variables}
    return subprocess.run(
        [sys.executable, "-c", FIND],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_sources_come_from_the_hub_and_then_from_its_cache(
    hub: ThreadingHTTPServer, tmp_path: Path, repositories: Path
) -> None:
    got = from_hub(hub.server_port, tmp_path)
    assert got.returncode == 0, got.stderr
    paths = dict(line.split("=", 1) for line in got.stdout.splitlines())
    assert list(paths) == list(SOURCES)
    for name, path in paths.items():
        assert sha256(Path(path)) == sha256(repositories / name / SOURCES[name].path)
    hub.shutdown()
    assert from_hub(hub.server_port, tmp_path, HF_HUB_OFFLINE="1").stdout == got.stdout


def test_what_the_hub_refuses_is_told_with_what_to_do(
    hub: ThreadingHTTPServer, tmp_path: Path
) -> None:
    Hub.refused = {
        "gpqa": (403, "GatedRepo"),
        "aime": (404, "EntryNotFound"),
        "math500": (404, "RevisionNotFound"),
        "mmlu_pro": (451, ""),
    }
    first, *others = from_hub(hub.server_port, tmp_path).stderr.splitlines()
    assert first == "4 of 9 sources are missing:"
    message = {line.split(":")[0].strip(): line for line in others}
    assert list(message) == ["aime", "gpqa", "math500", "mmlu_pro"]
    assert "is gated: accept its terms there, and set HF_TOKEN" in message["gpqa"]
    assert SOURCES["aime"].path in message["aime"]
    assert SOURCES["math500"].revision in message["math500"]
    assert SOURCES["mmlu_pro"].page in message["mmlu_pro"]


def test_without_a_network_the_sources_are_to_be_copied(tmp_path: Path) -> None:
    ended = from_hub(9, tmp_path, HF_HUB_OFFLINE="1")
    assert ended.stderr.startswith("9 of 9 sources are missing:")
    assert ended.stderr.count("can't be reached") == 9
    assert ended.stderr.count("pass their folder as --sources") == 9


def test_a_hub_that_can_not_be_reached_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its client takes minutes to give up."""
    cache_only = []

    def download(*args: str, local_files_only: bool, **options: str) -> str:
        cache_only.append(local_files_only)
        raise LocalEntryNotFoundError("no connection") from httpx.ConnectError("no route")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    with pytest.raises(InputFileError, match="9 of 9 sources are missing"):
        find(None)
    assert cache_only == [False, *[True] * 8]
