"""An HTTP/1.1 client for a load generator: many long streams of small events, at low cost.

A connection carries one exchange at a time and is kept for the next. Nothing is ever sent twice: a
failure is the caller's.
"""

import asyncio
import errno
import logging
import socket
import ssl
import time
from contextlib import suppress
from typing import NamedTuple
from urllib.parse import SplitResult, urlsplit

import httptools

from errors import EngineError, UsageError

log = logging.getLogger(__name__)

CONNECTING = 64  # at a time, or a server's accept queue could overflow
CONNECT_S = 60.0  # a busy server may accept nothing for seconds; TCP retries after 1, 3, 7 s
KEEP_S = 2.0  # servers close connections that are idle for 5 s: older ones are not reused
KEEPALIVE = (  # notices within a minute that a host is gone, even amid a long answer
    (socket.SO_KEEPALIVE, socket.SOL_SOCKET, 1),
    (socket.TCP_KEEPIDLE, socket.IPPROTO_TCP, 30),  # seconds
    (socket.TCP_KEEPINTVL, socket.IPPROTO_TCP, 10),  # seconds
    (socket.TCP_KEEPCNT, socket.IPPROTO_TCP, 3),
)


class Response(NamedTuple):
    """A server's response."""

    status: int
    body: bytes
    headers: dict[bytes, bytes]  # by names in lower case


class ExchangeError(Exception):
    """A server can't be reached, is gone, or does not speak HTTP."""


class Connection(asyncio.Protocol):
    """One connection to a server; `at_ns` is time.monotonic_ns() when its last data arrived."""

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
        """Whether it can be used for another exchange."""
        return self._error is None and time.monotonic() - self.idle_since < KEEP_S

    def send(self, message: bytes) -> None:
        """Start an exchange: send a whole request."""
        self._status = 0
        self.headers.clear()
        self._complete = False
        self._wanted = True
        self._transport.write(message)

    async def status(self) -> int:
        """The response's status. Raises: ExchangeError, or what `fail` was called with."""
        while not self._status:
            await self._news()
        return self._status

    async def read(self) -> bytes:
        """The part of the body that arrived since the last call, at least a byte; b"" at its end.

        Raises: as `status`, once all that arrived before is read.
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
        """Finish this exchange; what may still arrive of it is dropped."""
        self._wanted = False
        self._body.clear()
        if self._complete:
            self._client.keep(self)

    def abort(self) -> None:
        """Close at once, which makes the server abort the request."""
        self._transport.abort()

    def fail(self, error: Exception) -> None:
        """Close, and raise `error` from the pending call."""
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

    # called by asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        for option, level, value in KEEPALIVE:
            transport.get_extra_info("socket").setsockopt(level, option, value)
        self._client.connections.add(self)

    def data_received(self, data: bytes) -> None:
        self.at_ns = time.monotonic_ns()
        if self._complete:
            self.fail(ExchangeError("the server sent data without a request"))
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.fail(ExchangeError(f"the response is not HTTP: {error}"))
        self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        self._client.connections.discard(self)
        cause = f" ({error})" if error else ""
        self._error = self._error or ExchangeError(f"the server closed the connection{cause}")
        self._wake()

    # called by the parser

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
            self._error = self._error or ExchangeError("the server does not keep connections")
            self._transport.close()
        elif not self._wanted:
            self._client.keep(self)


class Client:
    """Exchanges with one server."""

    def __init__(self, url: str, key: str | None = None, host: str | None = None) -> None:
        """`key` is sent with every request and appears in no message. `host`: the address of the
        server, of several that the URL's host name has.

        Raises: UsageError for a URL or a key that can't be used.
        """
        if "@" in url:
            raise UsageError(
                "--endpoint: the URL holds a user name or key; set $MLPERF_ENDPOINT_KEY"
            )
        parts, port = _split(url)
        if key and not (key.isascii() and key.isprintable()):
            raise UsageError("$MLPERF_ENDPOINT_KEY holds characters that an HTTP header can't")
        tls = parts.scheme == "https"
        self._path = parts.path.rstrip("/")
        self.url = f"{parts.scheme}://{parts.netloc.lower()}{self._path}"
        if host:
            self.url += f" at {host}"
        self.connections: set[Connection] = set()
        self.address = (host or parts.hostname or "", port or (443 if tls else 80), self._path)
        self._name = parts.hostname if tls else None  # in the server's certificate
        self._tls = ssl.create_default_context() if tls else None
        self._headers = (
            f"host: {parts.netloc}\r\n"
            "content-type: application/json\r\naccept-encoding: identity\r\n"
            + (f"authorization: Bearer {key}\r\n" if key else "")
        ).encode()
        self._kept: list[Connection] = []
        self._connecting = asyncio.Semaphore(CONNECTING)

    async def open(self, path: str, body: bytes | None = None) -> Connection:
        """Send a request, POST if it has a body and else GET, and return its connection.

        Raises: ExchangeError; EngineError where this process has no file descriptors left.
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
        """Send a request and return the whole response. Raises: as `open`."""
        connection = await self.open(path, body)
        try:
            response = await connection.whole()
        except BaseException:
            connection.abort()
            raise
        connection.release()
        return response

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
                    lambda: Connection(self),
                    *(host, port),
                    ssl=self._tls,
                    server_hostname=self._name,
                )
        except TimeoutError:
            raise ExchangeError(f"could not connect within {CONNECT_S:g} s") from None
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise EngineError(
                    "no file descriptors are left for another connection: raise their limit"
                    " (ulimit -Hn), or lower --max-running"
                ) from error
            raise ExchangeError(f"can't be reached: {error.strerror or error}") from error
        return connection

    def close(self, error: Exception) -> None:
        """Close every connection; `error` is raised from pending calls."""
        for connection in list(self.connections):
            connection.fail(error)
        self._kept.clear()


def addresses(url: str) -> list[str]:
    """Of all servers at a URL: the addresses of its host name, of the family that comes first. A
    host has an address of each family, so that both would be one server. Empty if none is known.

    Raises: as Client.
    """
    host = Client(url).address[0]
    with suppress(OSError, UnicodeError):  # connecting to it says what is wrong
        infos = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        return sorted({str(one[4][0]) for one in infos if one[0] == infos[0][0]})
    return []


def clients(url: str, key: str | None = None) -> list[Client]:
    """Clients of all servers at a URL. Raises: as Client."""
    hosts = addresses(url)
    if len(hosts) < 2:
        return [Client(url, key)]
    log.info("%s: %d servers, at %s", url, len(hosts), ", ".join(hosts))
    return [Client(url, key, address) for address in hosts]


def _split(url: str) -> tuple[SplitResult, int | None]:
    """A server's URL, parsed, and its port. Raises: UsageError."""
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
        raise UsageError(f"--endpoint {url!r}: it must look like http://HOST:PORT")
    return parts, port
