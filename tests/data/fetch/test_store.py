"""MLCommons' lists of files: what they may hold, and where a mirror has them."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from data.fetch import store
from data.fetch.download import Patience
from data.fetch.sink import md5
from data.fetch.store import files_of, listing, mirror_root
from errors import FetchError, UsageError
from tests.data.fetch import server as faults
from tests.data.fetch.server import Server, serving

NAME = "rows"
SUM = hashlib.md5(b"x").hexdigest()
QUICK = Patience(tries=2, wait_s=0.01)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A store."""
    with serving() as one:
        monkeypatch.setattr(store, "STORE", one.url)
        one.files["/metadata/rows.uri"] = f"{one.elsewhere}/deepseek/r1\n".encode()
        one.files["/metadata/rows.md5"] = f"{SUM}  ./a.pkl\n{SUM} *sub/b c.pkl\n\n".encode()
        yield one


def test_files_of_the_store(server: Server) -> None:
    content, files = listing(NAME, mirror_root(None), QUICK)
    assert content == server.files["/metadata/rows.md5"]
    assert list(files) == ["a.pkl", "sub/b c.pkl"]
    assert files["a.pkl"].url == f"{server.elsewhere}/deepseek/r1/a.pkl"
    assert files["sub/b c.pkl"].url == f"{server.elsewhere}/deepseek/r1/sub/b%20c.pkl"
    assert {file.digest for file in files.values()} == {md5(SUM)}


def test_the_older_form_of_the_pointer(server: Server) -> None:
    server.files["/metadata/rows.url"] = server.files.pop("/metadata/rows.uri")
    assert "a.pkl" in listing(NAME, mirror_root(None), QUICK)[1]


def test_a_mirror_has_the_files_at_the_same_paths(server: Server) -> None:
    with serving() as mirror:
        mirror.files.update(server.files)
        _, files = listing(NAME, mirror_root(f"{mirror.url}/"), QUICK)
    assert files["a.pkl"].url == f"{mirror.url}/deepseek/r1/a.pkl"
    assert not server.requests


def test_a_folder_is_a_mirror(server: Server, tmp_path: Path) -> None:
    (tmp_path / "metadata").mkdir()
    for name, content in server.files.items():
        (tmp_path / name[1:]).write_bytes(content)
    _, files = listing(NAME, mirror_root(str(tmp_path)), QUICK)
    assert files["a.pkl"].url == f"{tmp_path.as_uri()}/deepseek/r1/a.pkl"


def test_an_earlier_download_is_a_mirror(server: Server, tmp_path: Path) -> None:
    (tmp_path / "rows.md5").write_bytes(server.files["/metadata/rows.md5"])
    _, files = listing(NAME, mirror_root(str(tmp_path)), QUICK)
    assert files["a.pkl"].url == f"{tmp_path.as_uri()}/a.pkl"


def test_what_is_no_mirror(server: Server, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=r"no mirror: neither .*rows\.url: .*, nor .*rows\.md5: "):
        listing(NAME, mirror_root(str(tmp_path)), QUICK)
    for mirror in ("ftp://host/", str(tmp_path / "missing"), "s3://bucket"):
        with pytest.raises(UsageError, match="neither a folder nor an http"):
            mirror_root(mirror)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!DOCTYPE html><html>Sign in", "expected the address of a folder, and it is an HTML"),
        (b"", "expected the address of a folder, and it is empty"),
        (b"x" * 5000, "expected the address of a folder, and it is text"),
        (b"file:///etc", "expected an https:// address, and 'file:///etc' came"),
        (b"https:///nowhere", "expected an https:// address"),
    ],
)
def test_wrong_pointers(server: Server, content: bytes, message: str) -> None:
    server.files["/metadata/rows.uri"] = content
    with pytest.raises(FetchError, match=f"{server.url}/metadata/rows.uri: {message}"):
        listing(NAME, mirror_root(None), QUICK)


@pytest.mark.parametrize("status", [403, 404, 500])
def test_a_list_that_can_not_be_had(server: Server, status: int) -> None:
    server.faults["/metadata/rows.md5"] = [faults.status(status)] * 5
    with pytest.raises(FetchError, match=f"{server.url}/metadata/rows.md5: status {status}"):
        listing(NAME, mirror_root(None), QUICK)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "expected a list of checksums and files, and it is empty"),
        ("\n \n", "and it is empty"),
        ("<html><body>Sign in</body></html>", "line 1: .*and it is an HTML page"),
        (f"{SUM}\n", "line 1: expected a checksum and a path, and '[0-9a-f]+' came"),
        (f"{SUM}  a\nnonsense\n", "line 2: expected a checksum and a path, and 'nonsense' came"),
        (f"{SUM[:-1]}  a\n", "line 1: expected a checksum"),
        (f"{SUM}  a\n{SUM[::-1]}  ./a\n", "line 2: a has two checksums"),
        *(
            (f"{SUM}  a\n{SUM}  {path}\n", "line 2: expected a path inside the folder")
            for path in (
                *("../a", "a/../../b", "/etc/passwd", "..", ".", "a\\..\\b", "a/", "a\x07b"),
                *("./../a", "//host/a", "a/..", "\u202ea"),
            )
        ),
    ],
)
def test_lists_that_are_refused(content: str, message: str) -> None:
    with pytest.raises(FetchError, match=f"^LIST.*{message}"):
        files_of("LIST", content.encode())


def test_a_list_that_is_no_text_is_refused() -> None:
    with pytest.raises(FetchError, match=r"LIST: expected a list .* gzip"):
        files_of("LIST", b"\x1f\x8b\xff\xff")


def test_a_list_of_a_whole_model() -> None:
    lines = "".join(f"{SUM}  model-{n:05}.safetensors\n" for n in range(5_000))
    assert len(files_of("LIST", lines.encode())) == 5_000
