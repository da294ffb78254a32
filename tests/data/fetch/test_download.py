"""One file over HTTP, from a server on loopback that fails in every way."""

import hashlib
import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from data.fetch import download
from data.fetch.download import Patience, Remote, partial_of, read_text
from data.fetch.sink import Digest, md5
from errors import FetchError, OutputError
from tests.data.fetch import server as faults
from tests.data.fetch.server import Fault, Server, serving

ROOT = Path(__file__).parents[3]
CONTENT = random.Random(1).randbytes(300_000)
OTHER = random.Random(2).randbytes(300_000)
MD5 = md5(hashlib.md5(CONTENT).hexdigest())
QUICK = Patience(tries=3, wait_s=0.01, longest_wait_s=0.2, stall_s=1)
CERTIFICATE = Path(__file__).with_name("loopback.pem")  # for 127.0.0.1, and its key: of no worth
HTML = b"<!DOCTYPE html><html><title>Sign in</title></html>"


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as one:
        one.files["/file"] = CONTENT
        yield one


def get(url: str, path: Path, digest: Digest = MD5) -> int:
    """Download, and return the bytes that the progress has come to."""
    counts: list[int] = []
    download.download(Remote(url, digest), path, QUICK, counts.append)
    return sum(counts)


@pytest.mark.parametrize(
    ("happens", "ranges"),
    [
        ([], [None]),
        ([faults.cut(1000)], [None, "bytes=1000-"]),
        ([faults.cut(0)], [None, None]),
        ([faults.cut(1000), faults.cut(500), None], [None, "bytes=1000-", "bytes=1500-"]),
        ([faults.stall(1000)], [None, "bytes=1000-"]),
        ([faults.corrupt], [None, None]),
        ([faults.cut(1000), faults.whole], [None, "bytes=1000-"]),
        ([faults.cut(1000), faults.another_range], [None, "bytes=1000-", None]),
        ([faults.cut(1000), faults.lying_range], [None, "bytes=1000-", None]),
        ([faults.cut(1000), faults.status(416)], [None, "bytes=1000-", None]),
        ([faults.unasked_range], [None, None]),
        ([faults.wrong_length(-1000)], [None, None]),
        ([faults.wrong_length(1000), None], [None, "bytes=300000-", None]),
        ([faults.without_length()], [None]),
        ([faults.without_length(1000)], [None, None]),
        ([faults.chunks(cut_off=False)], [None]),
        ([faults.chunks(cut_off=True)], [None, "bytes=150000-"]),
        ([faults.status(500), faults.status(500)], [None, None, None]),
        ([faults.status(503, Retry_After="0")], [None, None]),
        ([faults.status(429, Retry_After="0")], [None, None]),
        ([faults.status(200, HTML)], [None, None]),
        ([faults.status(200)], [None, None]),
        ([faults.no_http], [None, None]),
    ],
)
def test_the_right_file_comes_whatever_happens_first(
    server: Server, tmp_path: Path, happens: Sequence[Fault | None], ranges: list[str | None]
) -> None:
    server.faults["/file"] = list(happens)
    assert get(f"{server.url}/file", tmp_path / "file") == len(CONTENT)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert server.ranges("/file") == ranges


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (faults.corrupt, rf"expected {MD5}, and 300000 bytes of md5 \w+ came: twice"),
        (faults.lying_range, "asked for bytes from 0, and got 'bytes 0-299999/300000', twice"),
        (faults.stall(0), r"no data for 1 s \(tried 3 times\)"),
        (faults.cut(0), r"the connection ended 300000 bytes before the stated length \(tried 3"),
        (faults.compressed, r"expected the file as it is, and it came compressed \('gzip'\)"),
        (faults.status(403), "status 403 Forbidden: sign in, or ask for access"),
        (faults.status(404), "status 404 Not Found: is the address right"),
        (faults.status(429, Retry_After="100000"), r"status 429 Too Many Requests \(tried 3"),
        (faults.status(500), r"status 500 Internal Server Error \(tried 3 times\)"),
        (faults.status(200, HTML), r"came; it is an HTML page, such as a sign-in .*: twice"),
        (faults.status(200), "and 0 bytes of .* came; it is empty"),
        (faults.status(302, Location="/file"), "infinite loop"),
        (faults.status(302, Location="file:///etc/passwd"), "not allowed"),
        (faults.no_http, "the connection broke: 220 mail.example"),
    ],
)
def test_a_wrong_file_is_named_and_not_kept(
    server: Server, tmp_path: Path, fault: Fault, message: str
) -> None:
    server.faults["/file"] = [fault] * 50
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(FetchError, match=message) as error:
        get(f"{server.url}/file", tmp_path / "file")
    assert f"{server.url}/file: " in str(error.value)
    assert (tmp_path / "file").read_bytes() == b"old"


def test_what_an_earlier_download_left_is_continued(server: Server, tmp_path: Path) -> None:
    partial_of(tmp_path / "file").write_bytes(CONTENT[:123_456])
    assert get(f"{server.url}/file", tmp_path / "file") == len(CONTENT)
    assert server.ranges("/file") == ["bytes=123456-"]


def test_what_is_whole_is_not_asked_for(server: Server, tmp_path: Path) -> None:
    partial_of(tmp_path / "file").write_bytes(CONTENT)
    remote = Remote(f"{server.url}/file", MD5, len(CONTENT))
    download.download(remote, tmp_path / "file", QUICK, int)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert not server.requests
    partial_of(tmp_path / "file").write_bytes(OTHER)  # of the same size
    download.download(remote, tmp_path / "file", QUICK, int)
    assert (tmp_path / "file").read_bytes() == CONTENT


@pytest.mark.parametrize("left", [OTHER[:1000], CONTENT + b"more", OTHER])
def test_what_is_left_of_another_file_is_dropped(
    server: Server, tmp_path: Path, left: bytes
) -> None:
    partial_of(tmp_path / "file").write_bytes(left)
    assert get(f"{server.url}/file", tmp_path / "file") == len(CONTENT)
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_file_that_changes_between_two_requests_is_not_mixed(
    server: Server, tmp_path: Path
) -> None:
    def change(handler: faults.Handler, content: bytes) -> None:
        etag = {"ETag": f'"{hash(OTHER):x}"'}
        handler.send(200, OTHER[:1000], etag, length=len(OTHER))

    server.faults["/file"] = [change]
    get(f"{server.url}/file", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert len(server.ranges("/file")) == 2  # the second answer was the whole new file


def test_a_redirect_to_another_host_is_followed(server: Server, tmp_path: Path) -> None:
    with serving() as other:
        other.files["/there"] = CONTENT
        to = faults.status(302, Location=f"{other.elsewhere}/there")
        server.faults["/file"] = [to]
        get(f"{server.url}/file", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_server_is_waited_for_as_long_as_it_asks(server: Server, tmp_path: Path) -> None:
    server.faults["/file"] = [faults.status(429, Retry_After="1")]
    begun = time.monotonic()
    patience = Patience(wait_s=0, stall_s=1)
    download.download(Remote(f"{server.url}/file", MD5), tmp_path / "file", patience, int)
    assert time.monotonic() - begun >= 1


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/file"
        message = r"can't be reached: Connection refused; .*--mirror.* \(tried 3"
        with pytest.raises(FetchError, match=message):
            get(url, tmp_path / "file")


def test_a_certificate_has_to_be_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    with serving(tls=context) as server, serving() as plain:
        server.files["/file"] = CONTENT
        with pytest.raises(FetchError, match="certificate can't be trusted: self-signed"):
            get(f"{server.url}/file", tmp_path / "file")
        monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
        get(f"{server.url}/file", tmp_path / "file")
        assert (tmp_path / "file").read_bytes() == CONTENT
        plain.files["/file"] = CONTENT
        server.faults["/file"] = [faults.status(302, Location=f"{plain.url}/file")]
        with pytest.raises(FetchError, match=f"redirects to '{plain.url}/file', without TLS"):
            get(f"{server.url}/file", tmp_path / "file2")


def test_a_python_without_certificates_has_some() -> None:
    paths = ssl.DefaultVerifyPaths(None, None, "", "", "", "")  # type: ignore[arg-type]
    assert download.trusting(paths).cert_store_stats()["x509_ca"] > 50


def test_a_proxy_of_the_environment_is_used(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", server.url)  # a proxy is asked for the whole address
    get("http://store.invalid/file", tmp_path / "file")
    assert server.requests[0][1]["Host"] == "store.invalid"


def test_a_link_in_the_place_of_a_partial_file_is_not_followed(
    server: Server, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"mine")
    partial_of(tmp_path / "file").symlink_to(elsewhere)
    with pytest.raises(OutputError, match="can't be written: Too many levels of symbolic links"):
        get(f"{server.url}/file", tmp_path / "file")
    assert elsewhere.read_bytes() == b"mine"


CLIENT = """
import resource, sys
from pathlib import Path
from data.fetch.download import Patience, Remote, download
from data.fetch.sink import md5
from entrypoint import run
limit = int(sys.argv[4])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
def main():
    remote = Remote(sys.argv[1], md5(sys.argv[2]))
    download(remote, Path(sys.argv[3]), Patience(), lambda count: None)
run(main)
"""


KILLED_S = 150  # a process that writes to a busy disk may take long to end


def start(url: str, path: Path, limit: int = 0) -> subprocess.Popen[str]:
    """Download in a process of its own, with files of at most `limit` bytes."""
    words = [sys.executable, "-c", CLIENT, url, MD5.value, str(path), str(limit)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=env)


def test_a_full_disk_is_named_and_the_download_can_go_on(server: Server, tmp_path: Path) -> None:
    process = start(f"{server.url}/file", tmp_path / "file", 100_000)
    _, message = process.communicate(timeout=KILLED_S)
    assert process.returncode == OutputError.exit_code, message
    assert "can't be written: File too large; what is there is kept" in message
    assert not (tmp_path / "file").exists()
    assert get(f"{server.url}/file", tmp_path / "file") == len(CONTENT)
    assert server.ranges("/file")[-1] == "bytes=100000-"


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, 143)]
)
def test_a_killed_download_is_continued(
    server: Server, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    server.faults["/file"] = [faults.stall(200_000)]
    process = start(f"{server.url}/file", tmp_path / "file")
    partial = partial_of(tmp_path / "file")
    until = time.monotonic() + 30
    while not (partial.exists() and partial.stat().st_size == 200_000):
        assert time.monotonic() < until
        time.sleep(0.01)
    process.send_signal(number)
    _, message = process.communicate(timeout=KILLED_S)
    assert process.returncode == code, message
    assert "Traceback" not in message
    assert not (tmp_path / "file").exists()
    assert get(f"{server.url}/file", tmp_path / "file") == len(CONTENT)
    assert server.ranges("/file") == [None, "bytes=200000-"]


def test_a_list_is_read_whole_or_not_at_all(server: Server) -> None:
    server.faults["/file"] = [faults.cut(1000)]
    assert read_text(f"{server.url}/file", QUICK) == CONTENT
    server.files["/huge"] = bytes(download.LONGEST_TEXT + 1)
    with pytest.raises(FetchError, match="/huge: over 16777216 bytes came"):
        read_text(f"{server.url}/huge", QUICK)


def test_files_are_digested_beside_the_download_without_leaving_threads(
    server: Server, tmp_path: Path
) -> None:
    before = threading.active_count()
    for number in range(3):
        get(f"{server.url}/file", tmp_path / str(number))
    names = [thread.name for thread in threading.enumerate() if "digest" in thread.name]
    assert not names
    assert threading.active_count() <= before + 8  # the server's own, for its connections
