"""HTTP/1.1 for a load generator: many long streams of small events, at little cost for each.

A connection carries one exchange at a time and is kept for the next. Nothing is ever sent twice:
what fails, fails the caller.
"""

import asyncio
import errno
import socket
import ssl
import time
from typing import NamedTuple
from urllib.parse import SplitResult, urlsplit

import httptools

from errors import EngineError, UsageError

CONNECTING = 64  # at a time, so that a server's queue of new connections does not overflow
CONNECT_S = 60.0  # a busy server may accept none for seconds, and TCP then tries after 1, 3, 7 s
KEEP_S = 2.0  # servers drop a connection that was idle for 5 s: one close to that is not used again
KEEPALIVE = (  # a host that is gone shows within a minute, also while a long answer is awaited
    (socket.SO_KEEPALIVE, socket.SOL_SOCKET, 1),
    (socket.TCP_KEEPIDLE, socket.IPPROTO_TCP, 30),  # seconds
    (socket.TCP_KEEPINTVL, socket.IPPROTO_TCP, 10),  # seconds
    (socket.TCP_KEEPCNT, socket.IPPROTO_TCP, 3),
)


class Response(NamedTuple):
    """What a server has answered."""

    status: int
    body: bytes
    headers: dict[bytes, bytes]  # by names in lower case


class ExchangeError(Exception):
    """A server can't be reached, is gone, or does not speak HTTP."""


class Connection(asyncio.Protocol):
    """One connection to a server; `at_ns` is time.monotonic_ns() when its last data came."""

    def __init__(self, client: "Client") -> None:
        self.at_ns = 0
        self.idle_since = 0.0
        self._client = client
        self._parser = httptools.HttpResponseParser(self)
        self._status = 0
        self.headers: dict[bytes, bytes] = {}  # of the response, by names in lower case
        self._body: list[bytes] = []
        self._complete = True
        self._wanted = False
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def usable(self) -> bool:
        """Whether another exchange may begin on it."""
        return self._error is None and time.monotonic() - self.idle_since < KEEP_S

    def send(self, message: bytes) -> None:
        """Begin an exchange by a whole request."""
        self._status = 0
        self.headers.clear()
        self._complete = False
        self._wanted = True
        self._transport.write(message)

    async def status(self) -> int:
        """The status of the response. Raises: ExchangeError, or what `fail` was given."""
        while not self._status:
            await self._news()
        return self._status

    async def read(self) -> bytes:
        """What has come of the body since the last call, at least a byte; nothing at its end.

        Raises: as `status`, once all that came before is read.
        """
        while not self._body:
            if self._complete:
                return b""
            await self._news()
        data = b"".join(self._body)
        self._body.clear()
        return data

    async def read_all(self) -> bytes:
        """The rest of the body. Raises: as `read`."""
        parts = []
        while data := await self.read():
            parts.append(data)
        return b"".join(parts)

    async def whole(self) -> Response:
        """The whole response. Raises: as `read`."""
        status, body = await self.status(), await self.read_all()
        return Response(status, body, dict(self.headers))

    def release(self) -> None:
        """The caller needs no more of this exchange; what may still come of it is dropped."""
        self._wanted = False
        self._body.clear()
        if self._complete:
            self._client.keep(self)

    def abort(self) -> None:
        """Close at once: the server sees that nobody waits."""
        self._transport.abort()

    def fail(self, error: Exception) -> None:
        """Close, and raise `error` to whoever waits."""
        self._error = self._error or error
        self._transport.abort()
        self._wake()

    async def _news(self) -> None:
        if self._error:
            raise self._error
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter

    def _wake(self) -> None:
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)

    # what asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        for option, level, value in KEEPALIVE:
            transport.get_extra_info("socket").setsockopt(level, option, value)
        self._client.connections.add(self)

    def data_received(self, data: bytes) -> None:
        self.at_ns = time.monotonic_ns()
        if self._complete:
            self.fail(ExchangeError("the server answers what nobody asked"))
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.fail(ExchangeError(f"this is not HTTP: {error}"))
        self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        self._client.connections.discard(self)
        said = f" ({error})" if error else ""
        self._error = self._error or ExchangeError(f"the server has closed the connection{said}")
        self._wake()

    # what the parser calls

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        self._status = self._parser.get_status_code()

    def on_body(self, data: bytes) -> None:
        if self._wanted:
            self._body.append(data)

    def on_message_complete(self) -> None:
        self._complete = True
        if not self._parser.should_keep_alive():
            self._error = self._error or ExchangeError("the server ends connections")
            self._transport.close()
        elif not self._wanted:
            self._client.keep(self)


class Client:
    """Exchanges with one server."""

    def __init__(self, url: str, key: str | None = None) -> None:
        """`key` is sent with every request and kept out of all that is said.

        Raises: UsageError for a URL or a key that can't be used.
        """
        if "@" in url:
            raise UsageError("an endpoint's URL holds a name or key; keys come by their variable")
        parts, port = _split(url)
        if key and not (key.isascii() and key.isprintable()):
            raise UsageError("the endpoint's key holds characters that HTTP can't carry")
        tls = parts.scheme == "https"
        self._path = parts.path.rstrip("/")
        self.url = f"{parts.scheme}://{parts.netloc.lower()}{self._path}"
        self.connections: set[Connection] = set()
        self.address = (parts.hostname or "", port or (443 if tls else 80), self._path)
        self._tls = ssl.create_default_context() if tls else None
        self._headers = (
            f"host: {parts.netloc}\r\n"
            "content-type: application/json\r\naccept-encoding: identity\r\n"
            + (f"authorization: Bearer {key}\r\n" if key else "")
        ).encode()
        self._kept: list[Connection] = []
        self._connecting = asyncio.Semaphore(CONNECTING)

    async def open(self, path: str, body: bytes | None = None) -> Connection:
        """A connection on which a request has been sent: POST where there is a body, else GET.

        Raises: ExchangeError; EngineError where this process has no descriptors left.
        """
        while self._kept:
            connection = self._kept.pop()
            if connection.usable:
                break
            connection.abort()
        else:
            connection = await self._connect()
        method = "GET" if body is None else "POST"
        head = f"{method} {self._path}{path} HTTP/1.1\r\n".encode() + self._headers
        connection.send(b"%bcontent-length: %d\r\n\r\n%b" % (head, len(body or b""), body or b""))
        return connection

    async def fetch(self, path: str, body: bytes | None = None) -> Response:
        """The whole answer to a request. Raises: as `open`."""
        connection = await self.open(path, body)
        try:
            answer = await connection.whole()
        except BaseException:
            connection.abort()
            raise
        connection.release()
        return answer

    def keep(self, connection: Connection) -> None:
        """Take a connection back for a later exchange."""
        connection.idle_since = time.monotonic()
        self._kept.append(connection)

    async def _connect(self) -> Connection:
        host, port, _ = self.address
        loop = asyncio.get_running_loop()
        try:
            async with self._connecting, asyncio.timeout(CONNECT_S):
                _, connection = await loop.create_connection(
                    lambda: Connection(self), host, port, ssl=self._tls
                )
        except TimeoutError:
            raise ExchangeError(f"no connection within {CONNECT_S:g} s") from None
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise EngineError(
                    "no file descriptor is left for another connection: raise the limit"
                    " (ulimit -Hn), or lower --max-running"
                ) from error
            raise ExchangeError(f"it can't be reached: {error.strerror or error}") from error
        return connection

    def close(self, error: Exception) -> None:
        """Close every connection; `error` is raised to whoever waits on one."""
        for connection in list(self.connections):
            connection.fail(error)
        self._kept.clear()


def _split(url: str) -> tuple[SplitResult, int | None]:
    """A server's URL, and the port in it. Raises: UsageError."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        port = 0
    if (
        port == 0
        or parts.scheme not in ("http", "https")
        or not parts.hostname
        or (parts.query or parts.fragment)
        or not (url.isascii() and url.isprintable() and " " not in url)
    ):
        raise UsageError(f"endpoint {url!r}: it must look like http://HOST:PORT")
    return parts, port
