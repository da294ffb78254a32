"""Get one file over HTTP: resumed, retried, checked, and under its name only once it is right."""

import http.client
import logging
import re
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from data.fetch.bars import progress_bar
from data.fetch.sink import CHUNK, Digest, Sink
from data.fetch.space import size
from errors import FetchError, OutputError
from ref_dsinfer.lookalike import HEAD, what_it_is
from terminal import quoted

log = logging.getLogger(__name__)
T = TypeVar("T")

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
class Remote:
    """A published file."""

    url: str
    digest: Digest
    size: int | None = None  # bytes, if it is known
    authorization: str = field(default="", repr=False)  # for its host alone


class MissingError(FetchError):
    """There is no such file."""


class FailedError(Exception):
    """A try that failed, where another one may not."""

    def __init__(self, reason: str, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_s = wait_s  # that the server asks for


class _Unusable(Exception):
    """What is there of a file can't be continued: begin again."""


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

    return insist(url, attempt, patience)


def size_of(url: str, patience: Patience) -> int | None:
    """The size that a server states, None if it does not: a hint, not a fact."""
    try:
        with _opened(url, {}, patience, "HEAD") as response:
            stated = response.headers.get("Content-Length", "")
    except (FailedError, FetchError):  # the download itself will say why
        return None
    return int(stated) if stated.isdecimal() else None


def download(remote: Remote, path: Path, patience: Patience, seen: Callable[[int], object]) -> None:
    """Download a file to `path`, or continue a download that was interrupted.

    The published checksum alone decides whether a file is right: a wrong one is downloaded once
    more, from its start. `seen` is called with the number of bytes that arrived, or that
    were there; it is negative where they are dropped.

    Raises: FetchError naming URL, what was expected and what came; OutputError.
    """
    partial = partial_of(path)
    for last in (False, True):
        with Sink(partial, remote.digest, seen) as sink:
            if sink.size != remote.size:
                _fill(remote, sink, patience)
            came, count = sink.digest(), sink.size
        if came == remote.digest:
            _move(partial, path)
            return
        what = _what_came(partial)
        seen(-count)
        partial.unlink(missing_ok=True)
        problem = f"{remote.url}: expected {remote.digest}, and {count} bytes of {came} came{what}"
        if last:
            raise FetchError(f"{problem}: twice, so nothing was kept")
        log.warning("%s: downloading it once more", problem)


def download_all(
    files: Mapping[Path, Remote], total: int | None, patience: Patience, workers: int
) -> None:
    """Download several files at once, with progress; `total` in bytes, if it is known.

    Raises: FetchError, OutputError; other downloads are then left as they are.
    """
    pool = ThreadPoolExecutor(workers)
    names = f"{len(files)} file{'' if len(files) == 1 else 's'}"
    log.info("fetching %s%s", names, "" if total is None else f", {size(total)}")
    try:
        with progress_bar(total, "fetching") as seen:
            ends = [
                pool.submit(download, remote, path, patience, seen)
                for path, remote in files.items()
            ]
            for end in as_completed(ends):
                end.result()
    except BaseException:  # an interrupt, too, must not wait for the threads
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


def _fill(remote: Remote, sink: Sink, patience: Patience) -> None:
    """Append to a sink until a response has ended as it should. Raises: FetchError, OutputError."""
    url = remote.url
    etag = None  # of the file that the sink holds the beginning of, once it is known

    def attempt() -> None:
        nonlocal etag
        headers = {"Range": f"bytes={sink.size}-"} if sink.size else {}
        if sink.size and etag:
            headers["If-Range"] = etag
        with _opened(url, headers, patience, authorization=remote.authorization) as response:
            _check_range(response, sink)
            if not sink.size:
                etag = _strong_etag(response)
            while data := response.read1(CHUNK):
                sink.write(data)
            _check_end(response)

    for last in (False, True):
        try:
            return insist(url, attempt, patience, lambda: sink.size)
        except _Unusable as error:
            if last:
                raise FetchError(f"{url}: {error}, twice") from error
            log.warning("%s: %s: beginning again", url, error)
            sink.clear()
            etag = None
    raise AssertionError  # the last try returns or raises


def _check_range(response: Any, sink: Sink) -> None:
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
    """Raises: FailedError if a response ended before its stated length."""
    left = getattr(response, "length", None)  # None if chunked, or the server stated none
    if left:
        raise FailedError(f"the connection ended {left} bytes before the stated length")


def _strong_etag(response: Any) -> str | None:
    etag: str | None = response.headers.get("ETag")
    return None if etag is None or etag.startswith("W/") else etag


def insist(
    name: str,
    attempt: Callable[[], T],
    patience: Patience,
    progress: Callable[[], int] = lambda: 0,
) -> T:
    """Run an attempt until it succeeds, or has failed too often without bringing CHUNK bytes.

    Raises: FetchError; what an attempt raises, but for FailedError.
    """
    failures, reached = 0, progress()
    while True:
        try:
            return attempt()
        except FailedError as error:
            if progress() >= reached + CHUNK:
                failures, reached = 0, progress()
            failures += 1
            if failures >= patience.tries:
                raise FetchError(f"{name}: {error} (tried {failures} times)") from error
            wait = max(patience.wait_s * 2 ** (failures - 1), error.wait_s)
            wait = min(wait, patience.longest_wait_s)
            log.warning("%s: %s: trying again in %.0f s", name, error, wait)
            time.sleep(wait)


@contextmanager
def _opened(
    url: str,
    headers: Mapping[str, str],
    patience: Patience,
    method: str = "GET",
    authorization: str = "",
) -> Iterator[Any]:
    """A server's response, with a status that is good. Proxies are the environment's.

    `authorization`: a header that no other host gets, after a redirect.

    Raises: FailedError, also while the response is read; _Unusable, FetchError.
    """
    headers = {"Accept-Encoding": "identity", "User-Agent": AGENT, **headers}
    request = urllib.request.Request(url, headers=headers, method=method)
    if authorization:
        request.add_unredirected_header("Authorization", authorization)
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
        raise FailedError(f"no data for {patience.stall_s:g} s") from error
    except urllib.error.URLError as error:
        raise _unreachable(url, error.reason) from error
    except (http.client.HTTPException, OSError) as error:
        raise FailedError(f"the connection broke: {str(error) or type(error).__name__}") from error


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but never from TLS to plain text."""

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if req.type == "https" and not newurl.startswith("https://"):
            raise FetchError(f"{req.full_url}: redirects to {quoted(newurl)}, without TLS")
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request and (request.type, request.host) == (req.type, req.host):
            request.unredirected_hdrs.update(req.unredirected_hdrs)
        return request


def _opener() -> urllib.request.OpenerDirector:
    tls = urllib.request.HTTPSHandler(context=trusting(ssl.get_default_verify_paths()))
    return urllib.request.build_opener(_Redirects(), tls)


@lru_cache
def trusting(paths: ssl.DefaultVerifyPaths) -> ssl.SSLContext:
    """The certificate authorities of SSL_CERT_FILE, SSL_CERT_DIR or the system.

    A Python that was built elsewhere may look for the system's in vain: then they are certifi's.
    """
    context = ssl.create_default_context()
    if paths.cafile is None and paths.capath is None:
        import certifi

        context.load_verify_locations(certifi.where())
    return context


def _refused(url: str, error: urllib.error.HTTPError) -> Exception:
    """What an HTTP status that is no success means."""
    if error.code == 416:
        return _Unusable("the server has no bytes after those that are here")
    reason = f"status {error.code} {error.reason}"
    if error.code in PASSING:
        seconds = error.headers.get("Retry-After", "")
        return FailedError(reason, float(seconds) if seconds.isdecimal() else 0.0)
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
        return FailedError("could not connect in time")
    text = reason.strerror if isinstance(reason, OSError) else None
    return FailedError(
        f"can't be reached: {text or reason}; on a host without internet use --mirror, behind a"
        " proxy HTTPS_PROXY"
    )


def _what_came(partial: Path) -> str:
    """Words about a wrong file that is of another kind altogether."""
    with partial.open("rb") as file:
        phrase = what_it_is(file.read(HEAD))
    return f"; it is {phrase}" if phrase else ""


def _move(partial: Path, path: Path) -> None:
    try:
        partial.replace(path)
    except OSError as error:
        raise OutputError(f"{path}: can't be written: {error.strerror}") from error
