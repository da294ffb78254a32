"""An SGLang server that is started here, used over HTTP on a loopback port, and ended here.

Other users of this machine can't use it: it requires an API key, which is new in each run. Tested
with SGLang 0.5.23.
"""

import asyncio
import json
import logging
import secrets
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any, NoReturn

from backends.children import Children
from backends.drive import cancel
from backends.endpoint import Endpoint
from backends.endpoints import Endpoints
from backends.http_client import Client, ExchangeError
from backends.nodes import Nodes
from backends.options import require_mtp
from backends.sglang_args import (
    arguments,
    device_of,
    environment,
    processes,
    settings,
    span,
)
from backends.sglang_server import SglangDialect
from backends.types import Backend, Delta, EngineConfig, Request, Reuse, Stats
from errors import EngineError
from ref_dsinfer.network import check_interfaces

log = logging.getLogger(__name__)
POLL_S = 0.3  # between checks of a starting server
DEATH_S = 5.0  # for a server to end after its connections broke
TERM_S = 4.0  # for it to end by itself; what is left then is killed
# Name prefixes of its files in shared memory, and of Python's, which it leaves when it crashes.
SHARED = ("sglang_loads_", "sgl_shm_", "sem.mp-", "psm_")
PORT_TAKEN = "address already in use"  # SGLang then keeps running without a port


class SglangBackend(Backend):
    """SGLang as a child process.

    Raises: UsageError for options, ModelError for a model that can't be read, LaunchError for an
    unknown network interface; EngineError from `start` and `stream`, with the last lines of
    SGLang's log if it died.
    """

    def __init__(self, config: EngineConfig) -> None:
        super().__init__(config)
        self._device = device_of(config.device)
        check_interfaces(on_gpu=self._device == "cuda" and processes(config) > 1)
        if config.speculative:
            require_mtp(config.model)
        self._arguments = arguments(config, self._device)
        self._nodes = Nodes(config, span(config))
        self._children: Children | None = None
        self._process: subprocess.Popen | None = None
        self._server: Endpoints | None = None
        self._server_info: Mapping[str, Any] = {}

    @property
    def leads(self) -> bool:
        return not self.config.join

    def follow(self) -> None:
        """Run this host's workers until the first host's run is done."""
        asyncio.run(self._follow())

    async def start(self) -> None:
        url, key = await self._start_process()
        children = self._children
        assert children
        assert self._process
        # waiting requests are queued in the server
        config = replace(self.config, max_running=None, served_model=None)
        self._server = Endpoints(config, SglangDialect(config.model), [url], key)
        ready = asyncio.create_task(self._ready(self._server, url, key))
        failing = asyncio.create_task(self._failing(children, self._process))
        try:
            async with children.starting("SGLang"):
                done, _ = await asyncio.wait(
                    {ready, failing},
                    timeout=self.config.start_timeout,
                    return_when=asyncio.FIRST_COMPLETED,
                )
            if not done:
                seconds = self.config.start_timeout
                raise children.failure(
                    f"SGLang was not ready within {seconds:g} s (--start-timeout)"
                )
            done.pop().result()
        except EngineError as error:
            raise await self._cause(error) from error
        finally:
            await cancel([ready, failing])
        children.started()

    async def stream(self, request: Request) -> AsyncGenerator[Delta, None]:
        if self._server is None:
            raise EngineError("SGLang has not been started")
        try:
            async with aclosing(self._server.stream(request)) as deltas:
                async for delta in deltas:
                    yield delta
        except EngineError as error:
            raise await self._cause(error) from error

    def effective(self) -> Mapping[str, Any]:
        return {"arguments": self._arguments, "server": self._server_info}

    async def reuse(self) -> Reuse:
        return await self._server.reuse() if self._server else Reuse(enabled=None)

    async def stats(self) -> Stats:
        return await self._server.stats() if self._server else Stats()

    async def close(self) -> None:
        """End the server: ask it to terminate, then kill what is left."""
        self._nodes.leave()
        if self._server:
            await self._server.close()
        if self._process:
            self._process.terminate()
            await self._ended(TERM_S)
        if self._children:
            await asyncio.to_thread(self._children.close)
        if self._process:
            self._process.poll()  # reaps it

    async def _follow(self) -> None:
        try:
            await self._start_process()
            assert self._children
            assert self._process
            process = self._process
            log.info("this host's part of SGLang has started; its log is %s", self._children.log)
            await self._nodes.follow(self._children, "SGLang", lambda: process.poll() is not None)
        finally:
            if self._children:
                await asyncio.to_thread(self._children.close)

    async def _start_process(self) -> tuple[str, str]:
        """Start SGLang once all hosts are there. Returns its URL, and the key to it."""
        address = await self._nodes.meet(settings(self._arguments))
        key = secrets.token_hex()
        self._children = Children(self._nodes.log, SHARED, secret=key)
        url = f"http://127.0.0.1:{_free_port()}"
        self._process = self._launch(self._children, url, key, address)
        return url, key

    def _launch(self, children: Children, url: str, key: str, address: str) -> subprocess.Popen:
        # In a file, since others can read command lines. SGLang repeats the key in its log.
        secret = children.folder / "server.yaml"
        secret.touch(0o600)
        secret.write_text(json.dumps({"api-key": key}))
        port = url.rpartition(":")[2]
        command = [
            *(sys.executable, "-P", "-m", "sglang.launch_server", *self._arguments),
            *("--host", "127.0.0.1", "--port", port, "--config", str(secret)),
        ]
        with children.log.open("ab") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # it does not receive Ctrl-C
                env=environment(self.config, self._device, children.folder, address),
            )

    async def _ready(self, server: Endpoints, url: str, key: str) -> None:
        """Wait until the server is healthy, and check that it is ours and generates."""
        endpoint = Endpoint(Client(url, key))
        while True:
            try:
                if (await endpoint.client.fetch("/health")).status == 200:
                    break
            except ExchangeError:
                pass  # it is not listening yet
            await asyncio.sleep(POLL_S)
        info = await endpoint.get("/server_info")
        if key.encode() not in info:
            raise endpoint.error("another server has this port, which SGLang was to use: try again")
        self._server_info = json.loads(info.replace(key.encode(), b"-"))
        await server.start()

    async def _failing(self, children: Children, process: subprocess.Popen) -> NoReturn:
        """Raises: EngineError as soon as a starting server can no longer succeed."""
        while process.poll() is None:
            if children.log_contains(PORT_TAKEN):
                raise children.failure("SGLang found its port taken: try again")
            await asyncio.sleep(POLL_S)
        raise await self._nodes.failure(children, "SGLang did not start")

    async def _cause(self, error: EngineError) -> EngineError:
        """The cause of a failed request: the server's death, if its connection broke because of
        that."""
        if isinstance(error.__cause__, ExchangeError) and await self._ended(DEATH_S):
            assert self._process
            assert self._children
            code = self._process.returncode
            return await self._nodes.failure(self._children, f"SGLang has died (exit code {code})")
        return error

    async def _ended(self, seconds: float) -> bool:
        """Whether the server ends within `seconds`."""
        assert self._process
        until = asyncio.get_running_loop().time() + seconds
        while self._process.poll() is None:
            if asyncio.get_running_loop().time() > until:
                return False
            await asyncio.sleep(0.05)
        return True


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port
