"""An SGLang server of our own: started here, spoken to over HTTP on a loopback port, ended here.

Whoever else is on this machine can't use it, for it asks for a key that is made anew for each run.
Tried on SGLang 0.5.23.
"""

import asyncio
import json
import secrets
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any, NoReturn

from backends.children import Children
from backends.drive import cancel
from backends.endpoints import Endpoint, Endpoints
from backends.http_client import Client, ExchangeError
from backends.options import require_mtp
from backends.sglang_args import arguments, device_of, environment, processes
from backends.sglang_server import SglangDialect
from backends.types import Backend, Delta, EngineConfig, Request, Reuse
from errors import EngineError
from ref_dsinfer.network import check_interfaces

LOOK_S = 0.3  # between two looks at a server that starts
DEATH_S = 5.0  # for a server whose connections have broken to be seen to end
TERM_S = 4.0  # for it to end by itself; what is left then is killed
# How the names of its files in shared memory begin: where it crashes it leaves Python's too.
SHARED = ("sglang_loads_", "sgl_shm_", "sem.mp-", "psm_")
PORT_TAKEN = "address already in use"  # SGLang then goes on for ever, answering nobody


class SglangBackend(Backend):
    """SGLang, started here and ended here.

    Raises: UsageError for options, ModelError for a model that can't be read, LaunchError for a
    network interface that is not here; EngineError from `start` and `stream`, with the end of
    SGLang's own log where it has died.
    """

    def __init__(self, config: EngineConfig) -> None:
        super().__init__(config)
        self._device = device_of(config.device)
        check_interfaces(on_gpu=self._device == "cuda" and processes(config) > 1)
        if config.speculative:
            require_mtp(config.model)
        self._arguments = arguments(config, self._device)
        self._children: Children | None = None
        self._process: subprocess.Popen | None = None
        self._server: Endpoints | None = None
        self._told: Mapping[str, Any] = {}

    async def start(self) -> None:
        key = secrets.token_hex()
        self._children = children = Children(self.config.log, SHARED, secret=key)
        url = f"http://127.0.0.1:{_free_port()}"
        self._process = self._launch(children, url, key)
        # the server's own queue holds what waits
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
        children.settled()

    async def stream(self, request: Request) -> AsyncIterator[Delta]:
        if self._server is None:
            raise EngineError("SGLang has not been started")
        try:
            async with aclosing(self._server.stream(request)) as deltas:  # type: ignore[type-var]
                async for delta in deltas:
                    yield delta
        except EngineError as error:
            raise await self._cause(error) from error

    def effective(self) -> Mapping[str, Any]:
        return {"arguments": self._arguments, "server": self._told}

    async def reuse(self) -> Reuse:
        return await self._server.reuse() if self._server else Reuse(enabled=None)

    async def close(self) -> None:
        """End the server: first as it would, then by force."""
        if self._server:
            await self._server.close()
        if self._process:
            self._process.terminate()
            await self._ended(TERM_S)
        if self._children:
            await asyncio.to_thread(self._children.close)
        if self._process:
            self._process.poll()  # else it stays in the list of processes

    def _launch(self, children: Children, url: str, key: str) -> subprocess.Popen:
        # In a file, since others can read a command line. SGLang repeats the key in its log.
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
                start_new_session=True,  # it hears no Ctrl-C
                env=environment(self.config, self._device, children.folder),
            )

    async def _ready(self, server: Endpoints, url: str, key: str) -> None:
        """Wait until the server answers, and see that it is ours and generates."""
        endpoint = Endpoint(Client(url, key))
        while True:
            try:
                if (await endpoint.client.fetch("/health")).status == 200:
                    break
            except ExchangeError:
                pass  # it does not listen yet
            await asyncio.sleep(LOOK_S)
        told = await endpoint.get("/server_info")
        if key.encode() not in told:
            raise endpoint.error("another server answers here; SGLang's own port was taken")
        self._told = json.loads(told.replace(key.encode(), b"-"))
        await server.start()

    async def _failing(self, children: Children, process: subprocess.Popen) -> NoReturn:
        """Raises: EngineError as soon as a server that starts can't come to an end."""
        while process.poll() is None:
            if children.said(PORT_TAKEN):
                raise children.failure("SGLang found its port taken: start again")
            await asyncio.sleep(LOOK_S)
        raise children.failure("SGLang did not start")

    async def _cause(self, error: EngineError) -> EngineError:
        """What lies behind a failed request: where the connection has broken, perhaps the server's
        death."""
        if isinstance(error.__cause__, ExchangeError) and await self._ended(DEATH_S):
            assert self._process
            assert self._children
            return self._children.failure(f"SGLang has died (exit code {self._process.returncode})")
        return error

    async def _ended(self, seconds: float) -> bool:
        """Whether the server ends in that time."""
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
