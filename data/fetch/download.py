"""Get one file over HTTP: resumed, retried, checked, and under its name only once it is right."""

import hashlib
import http.client
import logging
import os
import queue
import re
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from errors import FetchError, OutputError
from ref_dsinfer.lookalike import HEAD, what_it_is
from terminal import quoted

log = logging.getLogger(__name__)
T = TypeVar("T")

CHUNK = 1 << 20  # bytes that are read at once, at most
WAITING = 16  # chunks that wait to be digested, at most
LONGEST_TEXT = 16 << 20  # bytes of a list of files
AGENT = "mlperf-deepseek-r1"
# Statuses that another try may change; all others are final.
PASSING = {408, 425, 429, 500, 502, 503, 504}
CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(?:\d+|\*)")
SIGN_IN = "sign in, or ask for access"
HINTS = {
    401: SIGN_IN,
    403: SIGN_IN,
    404: "is the address right, and has the mirror this file?",
    407: "the proxy wants a name and password: HTTPS_PROXY=http://NAME:PASSWORD@HOST:PORT",
}


@dataclass(frozen=True)
class Patience:
    """How long a server is waited for."""

    tries: int = 5  # in a row that bring less than CHUNK
    wait_s: float = 1.0  # after the first one; doubled after each further one
    longest_wait_s: float = 120.0  # also of what a server asks for by Retry-After
    stall_s: float = 60.0  # without a byte


@dataclass(frozen=True)
class Digest:
    """A published checksum."""

    algorithm: str  # as hashlib names it
    value: str  # hexadecimal, lower case

    def __str__(self) -> str:
        return f"{self.algorithm} {self.value}"


@dataclass(frozen=True)
class Remote:
    """A published file."""

    url: str
    digest: Digest


class MissingError(FetchError):
    """There is no such file."""


class _Failed(Exception):
    """A try that failed; another one may not."""

    def __init__(self, reason: str, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_s = wait_s  # that the server asks for


class _Unusable(Exception):
    """What is there of a file can't be continued: begin again."""


def digest_of(path: Path, algorithm: str) -> Digest:
    """The checksum of a file. Raises: OSError."""
    with path.open("rb") as file:
        return Digest(algorithm, hashlib.file_digest(file, algorithm).hexdigest())


def partial_of(path: Path) -> Path:
    """Where a file is kept until it is whole."""
    return path.with_name(f".{path.name}.partial")


def read_text(url: str, patience: Patience) -> bytes:
    """A small file, such as a list. Raises: FetchError."""

    def attempt() -> bytes:
        with _opened(url, {}, patience) as response:
            content: bytes = response.read(LONGEST_TEXT + 1)
            if len(content) > LONGEST_TEXT:
                raise FetchError(
                    f"{url}: over {LONGEST_TEXT} bytes came, where a list was expected"
                )
            _check_end(response)
        return content

    return _tried(url, attempt, patience, progress=lambda: 0)


def size_of(url: str, patience: Patience) -> int | None:
    """The size that a server states, None if it does not: a hint, not a fact."""
    try:
        with _opened(url, {}, patience, "HEAD") as response:
            size = response.headers.get("Content-Length", "")
    except (_Failed, FetchError):  # the download itself will say why
        return None
    return int(size) if size.isdecimal() else None


def download(remote: Remote, path: Path, patience: Patience, seen: Callable[[int], object]) -> None:
    """Download a file to `path`, or continue a download that was interrupted.

    The published checksum alone decides whether a file is right: a wrong one is downloaded once
    more, from its start. `seen` is told the number of bytes that arrived, or that were there; it is
    negative where they are dropped.

    Raises: FetchError naming URL, what was expected and what came; OutputError.
    """
    partial = partial_of(path)
    for last in (False, True):
        with _Sink(partial, remote.digest.algorithm, seen) as sink:
            _fill(remote.url, sink, patience)
            came, size = sink.digest(), sink.size
        if came == remote.digest:
            _move(partial, path)
            return
        what = _what_came(partial)
        seen(-size)
        partial.unlink(missing_ok=True)
        problem = f"{remote.url}: expected {remote.digest}, and {size} bytes of {came} came{what}"
        if last:
            raise FetchError(f"{problem}: twice, so nothing was kept")
        log.warning("%s: downloading it once more", problem)


def _fill(url: str, sink: "_Sink", patience: Patience) -> None:
    """Append to a sink until a response has ended as it should. Raises: FetchError, OutputError."""
    etag = None  # of the file that the sink holds the beginning of, once it is known

    def attempt() -> None:
        nonlocal etag
        headers = {"Range": f"bytes={sink.size}-"} if sink.size else {}
        if sink.size and etag:
            headers["If-Range"] = etag
        with _opened(url, headers, patience) as response:
            _check_range(response, sink)
            if not sink.size:
                etag = _strong_etag(response)
            while data := response.read1(CHUNK):
                sink.write(data)
            _check_end(response)

    for last in (False, True):
        try:
            return _tried(url, attempt, patience, progress=lambda: sink.size)
        except _Unusable as error:
            if last:
                raise FetchError(f"{url}: {error}, twice") from error
            log.warning("%s: %s: beginning again", url, error)
            sink.clear()
            etag = None
    raise AssertionError  # the last try returns or raises


def _check_range(response: Any, sink: "_Sink") -> None:
    """Empty the sink if the server sends the file from its start.

    Raises: _Unusable if it sends neither that nor what follows the sink's content.
    """
    if response.status != 206:
        sink.clear()
        return
    stated = response.headers.get("Content-Range", "")
    match = CONTENT_RANGE.fullmatch(stated)
    if not sink.size or not match or int(match[1]) != sink.size:
        raise _Unusable(f"asked for bytes from {sink.size}, and got {quoted(stated)}")


def _check_end(response: Any) -> None:
    """Raises: _Failed if a response ended before its stated length."""
    left = getattr(response, "length", None)  # None if chunked, or the server stated none
    if left:
        raise _Failed(f"the connection ended {left} bytes before the stated length")


def _strong_etag(response: Any) -> str | None:
    etag: str | None = response.headers.get("ETag")
    return None if etag is None or etag.startswith("W/") else etag


def _tried(
    url: str, attempt: Callable[[], T], patience: Patience, progress: Callable[[], int]
) -> T:
    """Run an attempt until it succeeds, or has failed too often without bringing CHUNK bytes.

    Raises: FetchError; _Unusable, OutputError from an attempt.
    """
    failures, reached = 0, progress()
    while True:
        try:
            return attempt()
        except _Failed as error:
            if progress() >= reached + CHUNK:
                failures, reached = 0, progress()
            failures += 1
            if failures >= patience.tries:
                raise FetchError(f"{url}: {error} (tried {failures} times)") from error
            wait = max(patience.wait_s * 2 ** (failures - 1), error.wait_s)
            wait = min(wait, patience.longest_wait_s)
            log.warning("%s: %s: trying again in %.0f s", url, error, wait)
            time.sleep(wait)


@contextmanager
def _opened(
    url: str, headers: dict[str, str], patience: Patience, method: str = "GET"
) -> Iterator[Any]:
    """A server's response, with a status that is good. Proxies are the environment's.

    Raises: _Failed, also while the response is read; _Unusable, FetchError.
    """
    headers = {"Accept-Encoding": "identity", "User-Agent": AGENT, **headers}
    request = urllib.request.Request(url, headers=headers, method=method)
    try:
        with _opener().open(request, timeout=patience.stall_s) as response:
            if encoding := response.headers.get("Content-Encoding", "").replace("identity", ""):
                raise FetchError(
                    f"{url}: expected the file as it is, and it came compressed"
                    f" ({quoted(encoding)}): is there a proxy between that changes it?"
                )
            yield response
    except urllib.error.HTTPError as error:
        with error:
            raise _refused(url, error) from error
    except TimeoutError as error:
        raise _Failed(f"no data for {patience.stall_s:g} s") from error
    except urllib.error.URLError as error:
        raise _unreachable(url, error.reason) from error
    except (http.client.HTTPException, OSError) as error:
        raise _Failed(f"the connection broke: {str(error) or type(error).__name__}") from error


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but never from TLS to plain text."""

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if req.type == "https" and not newurl.startswith("https://"):
            raise FetchError(f"{req.full_url}: redirects to {quoted(newurl)}, without TLS")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(_Redirects())


def _refused(url: str, error: urllib.error.HTTPError) -> Exception:
    """What an HTTP status that is no success means."""
    if error.code == 416:
        return _Unusable("the server has no bytes after those that are here")
    reason = f"status {error.code} {error.reason}"
    if error.code in PASSING:
        asked = error.headers.get("Retry-After", "")
        return _Failed(reason, float(asked) if asked.isdecimal() else 0.0)
    hint = HINTS.get(error.code)
    kind = MissingError if error.code in (404, 410) else FetchError
    return kind(f"{url}: {reason}" + (f": {hint}" if hint else ""))


def _unreachable(url: str, reason: str | BaseException) -> Exception:
    if isinstance(reason, ssl.SSLCertVerificationError):
        return FetchError(
            f"{url}: the server's certificate can't be trusted: {reason.verify_message} (a"
            " certificate authority of your own goes into SSL_CERT_FILE)"
        )
    if isinstance(reason, FileNotFoundError | NotADirectoryError | IsADirectoryError):
        return MissingError(f"{url}: {reason.strerror}")
    if isinstance(reason, TimeoutError):
        return _Failed("could not connect in time")
    text = reason.strerror if isinstance(reason, OSError) else None
    return _Failed(f"can't be reached: {text or reason}")


def _what_came(partial: Path) -> str:
    """Words about a wrong file that is of another kind altogether."""
    with partial.open("rb") as file:
        phrase = what_it_is(file.read(HEAD))
    return f"; it is {phrase}" if phrase else ""


def _move(partial: Path, path: Path) -> None:
    try:
        with partial.open("rb") as file:
            os.fsync(file.fileno())  # before the rename, or a power cut could leave it empty
        partial.replace(path)
    except OSError as error:
        raise OutputError(f"{path}: can't be written: {error.strerror}") from error


class _Sink:
    """A file that is written, and digested by a thread of its own meanwhile.

    What the file holds already is kept and digested first.
    """

    def __init__(self, path: Path, algorithm: str, seen: Callable[[int], object]) -> None:
        self.size = 0  # bytes
        self._path = path
        self._algorithm = algorithm
        self._seen = seen

    def __enter__(self) -> "_Sink":
        try:
            # not through a link, which could lead anywhere
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
            self._file = os.fdopen(os.open(self._path, flags, 0o644), "r+b", buffering=0)
        except OSError as error:
            raise self._error(error) from error
        self._begin()
        while data := self._file.read(CHUNK):
            self._add(data)
        return self

    def __exit__(self, *error: object) -> None:
        self._chunks.put(None)
        self._thread.join()
        self._file.close()

    def write(self, data: bytes) -> None:
        """Append. Raises: OutputError."""
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise self._error(error) from error
        self._add(data)

    def clear(self) -> None:
        """Drop everything."""
        if self.size:
            self._seen(-self.size)
            self._chunks.put(None)
            self._thread.join()
            self._file.seek(0)
            self._file.truncate()
            self._begin()

    def digest(self) -> Digest:
        """The checksum of everything written; nothing can be written after it."""
        self._chunks.put(None)
        self._thread.join()
        return Digest(self._algorithm, self._hash.hexdigest())

    def _begin(self) -> None:
        self.size = 0
        self._hash = hashlib.new(self._algorithm, usedforsecurity=False)
        self._chunks: queue.Queue[bytes | None] = queue.Queue(WAITING)
        self._thread = threading.Thread(target=self._digest_chunks, daemon=True)
        self._thread.start()

    def _add(self, data: bytes) -> None:
        self.size += len(data)
        self._seen(len(data))
        self._chunks.put(data)

    def _digest_chunks(self) -> None:
        while (data := self._chunks.get()) is not None:
            self._hash.update(data)

    def _error(self, error: OSError) -> OutputError:
        return OutputError(
            f"{self._path}: can't be written: {error.strerror}; what is there is kept, and the same"
            " command continues it"
        )
