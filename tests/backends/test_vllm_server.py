"""Real vLLM servers, attached."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import psutil
import pytest

from backends import drive
from backends.types import Completion, EngineConfig, Request, Reuse
from backends.vllm_server import VllmServer, read
from data import workload
from errors import EngineError
from tests.jobs import check_compliance, free_port, shared_by

TINY = Path(__file__).parents[2] / "data" / "tiny"
ROWS = 40
MOST = 400  # tokens of an answer that the first server gives
START_S = 900.0  # two servers at once on two busy cores, where nothing is compiled yet
pytestmark = pytest.mark.timeout(1200)


@dataclass
class Server:
    process: subprocess.Popen
    url: str
    log: Path

    def healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def running(self) -> float:
        """Number of requests that its engine is running."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=5) as answer:
            for line in answer.read().decode().splitlines():
                if line.startswith("vllm:num_requests_running"):
                    return float(line.rpartition(" ")[2])
        raise AssertionError("no such metric")

    @contextmanager
    def ending(self) -> Iterator[None]:
        """Afterwards the server is gone, with its engine's processes, which outlive it, and what
        they share."""
        server = psutil.Process(self.process.pid)
        family = [server, *server.children(recursive=True)]
        shared = shared_by(family)
        try:
            yield
        finally:
            for process in family:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            self.process.wait()
            psutil.wait_procs(family)
            for path in shared:
                path.unlink(missing_ok=True)


def serve(folder: Path, number: int, *options: str) -> Server:
    port = free_port()
    command = (
        f"-m vllm.entrypoints.openai.api_server --model {TINY / 'model'} --dtype float32"
        " --attention-backend CPU_MLA --enforce-eager --kv-cache-memory-bytes 536870912"
        f" --no-enable-prefix-caching --host 127.0.0.1 --port {port}"
    )
    log = folder / f"server{number}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, *command.split(), *options],
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"},
        )
    return Server(process, f"http://127.0.0.1:{port}", log)


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    """Two, of which the first limits answers, as a model's generation_config.json may."""
    folder = tmp_path_factory.mktemp("vllm")
    limit = json.dumps({"max_new_tokens": MOST})
    more = ["--override-generation-config", limit]
    started = [serve(folder, 0, *more), serve(folder, 1)]
    try:
        end = time.monotonic() + START_S
        while not all(server.healthy() for server in started):
            for server in started:
                assert server.process.poll() is None, server.log.read_text()[-3000:]
            assert time.monotonic() < end, started[0].log.read_text()[-3000:]
            time.sleep(0.5)
        yield started
    finally:
        for server in started:
            if server.process.poll() is None:
                with server.ending():
                    pass


def config(servers: list[Server], **fields: object) -> EngineConfig:
    urls = tuple(server.url for server in servers)
    return replace(EngineConfig(str(TINY / "model"), endpoints=urls), **fields)  # type: ignore[arg-type]


def rows(engine: EngineConfig) -> list[Request]:
    work = workload.build(TINY / "final_output.parquet", ROWS, engine, 200)
    return [work.request(index, index) for index in range(ROWS)]


def answers(engine: EngineConfig) -> tuple[list[Completion], list[int]]:
    """Of the tiny rows, and how many each server was sent."""

    async def run() -> tuple[list[Completion], list[int]]:
        backend = VllmServer(engine)
        async with drive.running(backend):
            done = await drive.run_all(backend, rows(engine))
            return done, [endpoint.sent for endpoint in backend._endpoints]

    return asyncio.run(run())


class TestReal:
    pytestmark: ClassVar = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.engine]

    def test_two_servers_share_the_load_and_answer_as_one(self, servers: list[Server]) -> None:
        one, _ = answers(config(servers[:1]))
        both, sent = answers(config(servers))
        whole, _ = answers(config(servers, coalesce=True))
        assert sum(sent) == ROWS
        assert abs(sent[0] - sent[1]) <= ROWS / 10
        ids = [(done.token_ids, done.finish) for done in one]
        assert ids == [(done.token_ids, done.finish) for done in both]
        assert ids == [(done.token_ids, done.finish) for done in whole]
        assert {done.finish for done in one} == {"stop"}
        stop_ids = rows(config(servers))[0].stop_ids
        assert all(stop_ids.isdisjoint(done.token_ids) for done in one)
        assert sum(done.first_ns < done.last_ns for done in one) > ROWS / 2  # they stream

    def test_only_the_request_s_stop_ids_end_an_answer(self, servers: list[Server]) -> None:
        request = rows(config(servers))[0]._replace(max_new_tokens=120, stop_ids=frozenset())

        async def run(engine: EngineConfig, *requests: Request) -> list[Completion]:
            backend = VllmServer(engine)
            async with drive.running(backend):
                return await drive.run_all(backend, requests)

        (free,) = asyncio.run(run(config(servers), request))
        assert (len(free.token_ids), free.finish) == (120, "length")
        stop = free.token_ids[5]
        first = list(free.token_ids).index(stop)
        (stopped,) = asyncio.run(run(config(servers), request._replace(stop_ids=frozenset({stop}))))
        assert (stopped.token_ids, stopped.finish) == (free.token_ids[:first], "stop")

    def test_a_stream_closed_early_ends_in_the_server(self, servers: list[Server]) -> None:
        request = Request(0, (0, 5, 6), 4000, frozenset())

        async def run() -> tuple[float, float]:
            backend = VllmServer(config(servers[:1]))
            async with drive.running(backend):
                stream = backend.stream(request)
                await anext(stream)
                before = await asyncio.to_thread(servers[0].running)
                await stream.aclose()
                await asyncio.sleep(1)
                return before, await asyncio.to_thread(servers[0].running)

        assert asyncio.run(run()) == (1, 0)

    def test_a_refusal_by_the_server_is_in_the_message(self, servers: list[Server]) -> None:
        request = Request(3, (0, 99_999), 4, frozenset())

        async def run() -> None:
            backend = VllmServer(config(servers[:1]))
            async with drive.running(backend):
                await drive.collect(backend, request)

        with pytest.raises(EngineError, match=r"request 3: .*out of vocabulary") as caught:
            asyncio.run(run())
        assert servers[0].url in str(caught.value)

    def test_the_logs_of_a_run_hold_to_test06(self, servers: list[Server], tmp_path: Path) -> None:
        check_compliance("vllm", servers[1].url, tmp_path)

    def test_a_server_killed_in_a_run_ends_it_and_is_named(self, servers: list[Server]) -> None:
        """The last test: one server is gone after it."""
        requests = [Request(number, (0, 5, number + 6), 4000, frozenset()) for number in range(8)]

        async def run() -> None:
            backend = VllmServer(config(servers))
            async with drive.running(backend):
                task = asyncio.create_task(drive.run_all(backend, requests))
                await asyncio.sleep(0.5)  # the first server's answers end soon
                assert not task.done()
                await asyncio.to_thread(servers[1].process.send_signal, signal.SIGKILL)
                with pytest.raises(EngineError, match="closed the connection") as caught:
                    await task
                assert servers[1].url in str(caught.value)
                assert servers[0].url not in str(caught.value)

        with servers[1].ending():
            asyncio.run(run())


class TestDefaults:
    """What a server does by itself and a figure must not have. On CPUs, and so here, vLLM keeps no
    prefixes of a model of this architecture, whatever it is asked for."""

    pytestmark: ClassVar = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.engine]

    @pytest.mark.parametrize("coalesce", [False, True])
    def test_an_answer_that_the_server_caps_is_a_failure(
        self, servers: list[Server], coalesce: bool
    ) -> None:
        engine = config(servers[:1], coalesce=coalesce)
        request = rows(engine)[2]._replace(
            id=10**14, max_new_tokens=MOST + 100, stop_ids=frozenset()
        )

        async def run() -> None:
            backend = VllmServer(engine)
            async with drive.running(backend):
                await drive.collect(backend, request)

        message = (
            rf"{servers[0].url}: row 2 \(request 10{{14}}\):"
            rf" .* cut the answer after {MOST} of {MOST + 100}"
        )
        with pytest.raises(EngineError, match=message):
            asyncio.run(run())

    def test_no_prefixes_are_no_reuse(self, servers: list[Server]) -> None:
        prompt = (0, *range(10, 74))
        requests = [Request(number, prompt, 4, frozenset()) for number in range(2)]

        async def run() -> Reuse:
            backend = VllmServer(config(servers[:1]))
            async with drive.running(backend):
                for request in requests:
                    await drive.collect(backend, request)
                return await backend.reuse()

        reuse = asyncio.run(run())
        assert reuse.enabled is False
        assert not reuse.cached_tokens

    def test_its_tokenizer_reads_our_ids(self, servers: list[Server]) -> None:
        work = workload.build(TINY / "final_output.parquet", 1, config(servers), 200)
        (ids,) = work.prompt_ids

        async def run() -> str | None:
            backend = VllmServer(config(servers[:1]))
            async with drive.running(backend):
                return await backend.detokenize(ids)

        assert asyncio.run(run()) == work.prompts.plain(ids)


@pytest.mark.parametrize(
    ("event", "ids", "finish"),
    [
        (b'{"choices":[{"token_ids":[5,6],"finish_reason":null}]}', [5, 6], None),
        (b'{"choices":[{"token_ids":[],"finish_reason":"length"}]}', [], "length"),
        (b'{"choices":[{"token_ids":[1],"finish_reason":"stop","stop_reason":1}]}', [1], "stop"),
        (b'{"choices":[],"usage":{}}', [], None),
    ],
)
def test_an_event_is_read(event: bytes, ids: list[int], finish: str | None) -> None:
    part = read(event)
    assert (list(part.token_ids), part.finish) == (ids, finish)


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (b'{"error":{"message":"no\\nroom","code":400}}', "no room"),
        (b'{"error":"odd"}', "odd"),
        (b'{"choices":[{"text":"a"}]}', "no token ids"),
        (b'{"choices":[{"token_ids":[],"finish_reason":"error"}]}', "'error'"),
        (b"[]", "object"),
        (b"", "truncated"),
    ],
)
def test_an_event_that_is_no_part_of_an_answer_is_refused(event: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(event)
