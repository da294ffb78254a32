"""A server without a model, with the API of `vllm serve`: the answer is the prompt, repeated.

It works in steps: in one, each request that runs gets a token. As a process of its own (`python
tests/backends/echo_server.py`) it prints its port, and runs all requests, in steps of no duration.
`echo_server.py LANES:STEP_MS ...` prints the ports of several that run so many at once, in steps of
so many milliseconds; `--listen ADDRESS:PORT` is for other hosts.
"""

import argparse
import asyncio
import itertools
import json
import sys
from collections.abc import Iterator

import httptools

MODEL = "echo"
LENGTH = 1 << 20  # tokens
HEAD = b"HTTP/1.1 %d %s\r\ncontent-type: %s\r\n"
CHUNKED = b"transfer-encoding: chunked\r\n\r\n"
EVENT = (
    b'data: {"id":"cmpl-8400cdf5084b1473","object":"text_completion","created":1795454084,'
    b'"model":"echo","choices":[{"index":0,"text":"","logprobs":null,"finish_reason":%s,'
    b'"stop_reason":null,"prompt_token_ids":null,"token_ids":[%d]}]}\n\n'
)


class EchoServer:
    """Its attributes, what it serves and how it fails, may be changed while it runs."""

    def __init__(self) -> None:
        self.model = MODEL
        self.root = MODEL
        self.length = LENGTH
        self.key: str | None = None  # asked of every request under /v1
        self.gives_ids = True
        self.answers_health = True
        self.health_status = 200
        self.status = 200  # of a generation request
        self.head = b""  # more lines in the head of every answer
        self.pages: dict[str, tuple[int, bytes]] = {}  # status and content of paths, in their place
        self.instead: tuple[list[int], str] | None = None  # every answer's ids and finish reason
        self.says: bytes | None = None  # instead of the token after the second
        self.dies_after: int | None = None  # tokens of a stream; its connection is then dropped
        self.stops_after: int | None = None  # tokens of a stream; none come after them
        self.end_streams = True  # else one that stops is left open
        self.lanes: int | None = None  # requests that run at once; others wait for their turn
        self.step_s = 0.0  # duration of a step
        self.rests = 0  # turns of the event loop between two steps
        self.requests: list[dict] = []  # bodies of generation requests
        self.aborted = 0  # streams whose client has gone
        self.open: dict[Exchange, Iterator[bytes]] = {}
        self.peers: set[Exchange] = set()

    async def start(self, port: int = 0, address: str = "127.0.0.1") -> str:
        """Start listening. Returns the URL."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Exchange(self), address, port)
        self._stepping = asyncio.create_task(self._step())
        return f"http://{address}:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        """Stop listening, and drop every connection."""
        self._server.close()
        self._stepping.cancel()
        for peer in list(self.peers):
            peer.transport.abort()

    async def _step(self) -> None:
        """Send one token to every running stream whose client keeps up."""
        loop = asyncio.get_running_loop()
        at = loop.time()
        while True:
            for exchange in [exchange for exchange in self.open if exchange.keeps_up][: self.lanes]:
                exchange.write_chunk(next(self.open[exchange]))
            at = max(at + self.step_s, loop.time()) if self.open else loop.time()
            await asyncio.sleep(at - loop.time() if self.open else 0.001)
            for _ in range(self.rests):
                await asyncio.sleep(0)

    def answer(self, body: dict) -> Iterator[tuple[int, bytes]]:
        """Token ids and the finish reason that comes with each, as JSON."""
        if self.instead:
            ids, finish = self.instead
            yield from ((id_, b"null") for id_ in ids[:-1])
            yield ids[-1], json.dumps(finish).encode()
            return
        stops = set(body["stop_token_ids"])
        for count, id_ in enumerate(itertools.cycle(body["prompt"]), 1):
            if id_ in stops:
                yield id_, b'"stop"'
                return
            if count == body["max_tokens"]:
                yield id_, b'"length"'
                return
            yield id_, b"null"

    def whole(self, body: dict, exchange: "Exchange") -> Iterator[bytes]:
        """Nothing per step, until an answer in one piece is complete."""
        pairs = list(self.answer(body))
        for _ in pairs[1:]:
            yield b""
        exchange.write_whole(pairs)
        del self.open[exchange]
        yield b""

    def events(self, body: dict, exchange: "Exchange") -> Iterator[bytes]:
        """The chunks of a stream, one per step; it ends the exchange itself."""
        for count, (id_, finish) in enumerate(self.answer(body), 1):
            if self.dies_after is not None and count > self.dies_after:
                exchange.transport.abort()
                yield b""
            if self.stops_after is not None and count > self.stops_after:
                while not self.end_streams:
                    yield b""
                break
            yield self.says if self.says and count == 3 else EVENT % (finish, id_)
        yield b"data: [DONE]\n\n"
        exchange.end()
        yield b""


class Exchange(asyncio.Protocol):
    """One connection."""

    def __init__(self, server: EchoServer) -> None:
        self.server = server
        self.keeps_up = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.server.peers.add(self)
        self._begin()

    def connection_lost(self, error: Exception | None) -> None:
        self.server.peers.discard(self)
        if self.server.open.pop(self, None):
            self.server.aborted += 1

    def pause_writing(self) -> None:
        self.keeps_up = False

    def resume_writing(self) -> None:
        self.keeps_up = True

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def _begin(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._body = b""
        self._key = ""

    def on_url(self, url: bytes) -> None:
        self._path = url.decode()

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"authorization":
            self._key = value.decode()

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        path, body, key = self._path, self._body, self._key
        asyncio.get_running_loop().call_soon(self._begin)
        server = self.server
        if path in server.pages:
            self.write_json(*server.pages[path])
        elif path == "/health":
            if server.answers_health:
                self.write_json(server.health_status, b"")
        elif server.key and key != f"Bearer {server.key}":
            self.write_json(401, b'{"error":"Unauthorized"}')
        elif path == "/v1/models":
            card = {"id": server.model, "root": server.root, "max_model_len": server.length}
            self.write_json(200, json.dumps({"data": [card]}).encode())
        elif path == "/version":
            self.write_json(200, b'{"version":"0.0.0"}')
        elif path == "/v1/completions":
            self._generate(json.loads(body))
        else:
            self.write_json(404, b'{"detail":"Not Found"}')

    def _generate(self, body: dict) -> None:
        server = self.server
        server.requests.append(body)
        if server.status != 200:
            error = {"error": {"message": "told to\nfail", "code": server.status}}
            self.write_json(server.status, json.dumps(error).encode())
        elif body["stream"]:
            head = HEAD % (200, b"OK", b"text/event-stream") + server.head
            self.transport.write(head + CHUNKED)
            server.open[self] = server.events(body, self)
        elif server.lanes:
            server.open[self] = server.whole(body, self)
        else:
            self.write_whole(list(server.answer(body)))

    def write_whole(self, pairs: list[tuple[int, bytes]]) -> None:
        choice: dict[str, object] = {"finish_reason": json.loads(pairs[-1][1])}
        if self.server.gives_ids:
            choice["token_ids"] = [id_ for id_, _ in pairs]
        self.write_json(200, json.dumps({"choices": [choice]}).encode())

    def end(self) -> None:
        del self.server.open[self]
        self.transport.write(b"0\r\n\r\n")

    def write_chunk(self, data: bytes) -> None:
        if data:
            self.transport.write(b"%x\r\n%b\r\n" % (len(data), data))

    def write_json(self, status: int, body: bytes) -> None:
        head = HEAD % (status, b"OK" if status == 200 else b"Not OK", b"application/json")
        head += self.server.head
        self.transport.write(head + b"content-length: %d\r\n\r\n" % len(body) + body)


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("speeds", nargs="*")
    parser.add_argument("--listen", default="127.0.0.1:0")
    args = parser.parse_args()
    address, _, port = args.listen.partition(":")
    servers = [EchoServer() for _ in args.speeds or [""]]
    for server, speed in zip(servers, args.speeds, strict=False):
        lanes, _, step_ms = speed.partition(":")
        server.lanes, server.step_s = int(lanes), float(step_ms) / 1000
    for server in servers:
        print((await server.start(int(port), address)).rpartition(":")[2], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)  # until it is closed


if __name__ == "__main__":
    asyncio.run(main())
