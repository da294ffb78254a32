"""A small web server on loopback, in threads of this process, that fails as it is told to."""

import gzip
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self
from urllib.parse import unquote, urlsplit


class Handler(BaseHTTPRequestHandler):
    """Serves the server's files, with ranges and ETags, or does what a fault does instead."""

    protocol_version = "HTTP/1.1"
    server: "Server"

    def do_HEAD(self) -> None:
        path = unquote(urlsplit(self.path).path)
        content = self.server.content(self.path)
        if location := self.server.moved.get(path):
            self.begin(302, 0, {"Location": location})
        else:
            self.begin(404 if content is None else 200, len(content or b""))
        self.end_headers()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        headers = {name.title(): value for name, value in self.headers.items()}
        self.server.requests.append((path, headers))
        waiting = self.server.faults.get(path)
        fault = waiting.pop(0) if waiting else None
        content = self.server.content(self.path)
        if fault:
            fault(self, content or b"")
        elif location := self.server.moved.get(path):
            self.send(302, b"", {"Location": location})
        elif content is None:
            self.send(404, b"no such file")
        else:
            self.serve(content)

    def serve(self, content: bytes) -> None:
        """Answer as servers of files do."""
        etag = f'"{hash(content):x}"'
        range_header = self.headers.get("Range", "")
        if range_header and self.headers.get("If-Range", etag) == etag:
            first = int(range_header.removeprefix("bytes=").removesuffix("-"))
            if first >= len(content):
                self.send(416, b"", {"Content-Range": f"bytes */{len(content)}"})
                return
            stated = f"bytes {first}-{len(content) - 1}/{len(content)}"
            self.send(206, content[first:], {"Content-Range": stated, "ETag": etag})
        else:
            self.send(200, content, {"ETag": etag})

    def begin(self, status: int, length: int | None, headers: dict[str, str] | None = None) -> None:
        """Send a response's head, but for its end."""
        self.send_response(status)
        headers = self.server.heads.get(unquote(urlsplit(self.path).path), {}) | (headers or {})
        if length is not None:
            self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name, value)

    def send(
        self,
        status: int,
        body: bytes,
        headers: dict[str, str] | None = None,
        length: int | None = None,
    ) -> None:
        """Send a response; with another `length` than its body's, the connection ends after it."""
        self.begin(status, len(body) if length is None else length, headers)
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = length is not None

    def log_message(self, *words: object) -> None:
        """Keep quiet."""


Fault = Callable[[Handler, bytes], None]


class Server(ThreadingHTTPServer):
    """Files by path, and what goes wrong with each request for one, in order."""

    daemon_threads = True

    def __init__(self, root: Path | None = None, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.moved: dict[str, str] = {}  # addresses that files have moved to
        self.heads: dict[str, dict[str, str]] = {}  # further headers
        self.faults: dict[str, list[Fault | None]] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []  # path and headers of each GET
        self.released = threading.Event()  # ends all stalls
        self._root = root
        self._scheme = "https" if tls else "http"
        if tls:
            self.socket = tls.wrap_socket(self.socket, server_side=True)

    @property
    def url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self.server_port}"

    @property
    def elsewhere(self) -> str:
        """The same server under another host's name."""
        return self.url.replace("127.0.0.1", "localhost")

    def content(self, path: str) -> bytes | None:
        path = unquote(urlsplit(path).path)
        if path not in self.files and self._root and (self._root / path[1:]).is_file():
            return (self._root / path[1:]).read_bytes()
        return self.files.get(path)

    def ranges(self, path: str) -> list[str | None]:
        """The ranges that were asked of a file."""
        return [headers.get("Range") for name, headers in self.requests if name == path]

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that leaves is none."""

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.released.set()
        self.shutdown()
        self.server_close()


@contextmanager
def serving(root: Path | None = None, tls: ssl.SSLContext | None = None) -> Iterator[Server]:
    with Server(root, tls) as server:
        yield server


# Faults


def cut(after: int) -> Fault:
    """End the connection after some bytes of what was asked for."""

    def fault(handler: Handler, content: bytes) -> None:
        first = int((handler.headers.get("Range") or "bytes=0-")[6:-1])
        rest = content[first:]
        stated = {"Content-Range": f"bytes {first}-{len(content) - 1}/{len(content)}"}
        status = 206 if first else 200
        handler.send(status, rest[:after], stated if first else {}, length=len(rest))

    return fault


def stall(after: int) -> Fault:
    """Send some bytes, and no more."""

    def fault(handler: Handler, content: bytes) -> None:
        handler.begin(200, len(content))
        handler.end_headers()
        handler.wfile.write(content[:after])
        handler.wfile.flush()
        handler.server.released.wait(30)
        handler.close_connection = True

    return fault


def corrupt(handler: Handler, content: bytes) -> None:
    """Change a byte."""
    handler.serve(content[:100] + bytes([content[100] ^ 1]) + content[101:])


def whole(handler: Handler, content: bytes) -> None:
    """Answer 200 with the whole file, whatever was asked."""
    handler.send(200, content)


def status(code: int, body: bytes = b"", **headers: str) -> Fault:
    """Answer so."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda handler, content: handler.send(code, body, named)


def compressed(handler: Handler, content: bytes) -> None:
    """Compress, though asked not to."""
    handler.send(200, gzip.compress(content), {"Content-Encoding": "gzip"})


def unasked_range(handler: Handler, content: bytes) -> None:
    """Answer 206 to a request for the whole file."""
    stated = f"bytes 1000-{len(content) - 1}/{len(content)}"
    handler.send(206, content[1000:], {"Content-Range": stated})


def another_range(handler: Handler, content: bytes) -> None:
    """Send bytes from elsewhere than asked, and say so."""
    stated = f"bytes 5-{len(content) - 1}/{len(content)}"
    handler.send(206, content[5:], {"Content-Range": stated})


def lying_range(handler: Handler, content: bytes) -> None:
    """Send other bytes than the range that is stated."""
    range_header = handler.headers.get("Range", "bytes=0-")
    first = int(range_header[6:-1])
    stated = f"bytes {first}-{len(content) - 1}/{len(content)}"
    handler.send(206, content[: len(content) - first], {"Content-Range": stated})


def wrong_length(more: int) -> Fault:
    """State a length that is too great, or with a negative number too small."""

    def fault(handler: Handler, content: bytes) -> None:
        handler.send(200, content, length=len(content) + more)

    return fault


def without_length(after: int | None = None) -> Fault:
    """State no length, and end the connection after the file or after some bytes."""

    def fault(handler: Handler, content: bytes) -> None:
        handler.begin(200, None, {"Connection": "close"})
        handler.end_headers()
        handler.wfile.write(content[:after])
        handler.close_connection = True

    return fault


def chunks(cut_off: bool) -> Fault:
    """Send a file in chunks, without the last one if `cut_off`."""

    def fault(handler: Handler, content: bytes) -> None:
        handler.begin(200, None, {"Transfer-Encoding": "chunked"})
        handler.end_headers()
        half = len(content) // 2
        for part in (content[:half], content[half:]):
            handler.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))
            if cut_off:
                break
        else:
            handler.wfile.write(b"0\r\n\r\n")
        handler.close_connection = True

    return fault


def no_http(handler: Handler, content: bytes) -> None:
    """Speak something else."""
    handler.wfile.write(b"220 mail.example ESMTP\r\n")
    handler.close_connection = True
