"""Echo servers on a test's event loop, and a backend that uses them."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from backends.types import EngineConfig, Request
from backends.vllm_server import VllmServer
from tests.backends.echo_server import EchoServer

LENGTH = 1000  # tokens
STOP = 9  # id


def request(id_: int, tokens: int = 20, prompt: tuple[int, ...] = (3, 4, 5)) -> Request:
    return Request(id_, prompt, tokens, frozenset({STOP}))


@asynccontextmanager
async def servers(count: int) -> AsyncIterator[tuple[list[EchoServer], tuple[str, ...]]]:
    """Servers in this loop, and their URLs."""
    async with AsyncExitStack() as held:
        started = [EchoServer() for _ in range(count)]
        urls = []
        for server in started:
            urls.append(await server.start())
            held.push_async_callback(server.stop)
        yield started, tuple(urls)


def with_servers(
    model: Path,
    test: Callable[[SimpleNamespace], Awaitable[Any]],
    count: int = 1,
    started: bool = True,
    **fields: Any,
) -> Any:
    """Run `test` with `count` servers and one backend that uses them, started or not."""

    async def run() -> Any:
        async with servers(count) as (echo_servers, urls), AsyncExitStack() as held:
            config = EngineConfig(str(model), endpoints=urls, **fields)
            backend = VllmServer(config)
            held.push_async_callback(backend.close)
            if started:
                await backend.start()
                for server in echo_servers:
                    server.requests.clear()
            parts = SimpleNamespace(
                backend=backend, servers=echo_servers, server=echo_servers[0], urls=urls
            )
            return await asyncio.wait_for(test(parts), 20)

    return asyncio.run(run())


def model_folder(folder: Path) -> Path:
    """A model directory with what a client of servers reads."""
    model = folder / "echo"
    model.mkdir()
    sizes = {"max_position_embeddings": LENGTH, "vocab_size": 100}
    (model / "config.json").write_text(json.dumps(sizes))
    return model
