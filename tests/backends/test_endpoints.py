import asyncio
import re
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends import drive, endpoint, endpoints, http_client
from backends.dialect import Events, refusal
from backends.http_client import Response
from backends.types import Completion, Reuse
from errors import EngineError
from tests.backends.attached import STOP, model_folder, request, servers, with_servers
from tests.backends.echo_server import EchoServer


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return model_folder(tmp_path)


def failed(model: Path, change: Callable[[EchoServer], None], **fields: Any) -> str:
    """What a request raises on a server that was changed after the start."""

    async def test(parts: SimpleNamespace) -> str:
        change(parts.server)
        with pytest.raises(EngineError) as caught:
            await drive.collect(parts.backend, request(77))
        assert parts.urls[0] in str(caught.value)
        assert "request 77" in str(caught.value)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    message: str = with_servers(model, test, **fields)
    return message


@pytest.mark.parametrize("coalesce", [False, True])
def test_answers_are_the_ids_without_the_stop_id(model: Path, coalesce: bool) -> None:
    async def test(parts: SimpleNamespace) -> list[Completion]:
        return await drive.run_all(
            parts.backend,
            [request(0, 7), request(1, 7, (3, 4, 5, STOP)), request(2, 7, (STOP,)), request(3, 1)],
        )

    long, stopped, empty, one = with_servers(model, test, coalesce=coalesce)
    assert (list(long.token_ids), long.finish) == ([3, 4, 5, 3, 4, 5, 3], "length")
    assert (list(stopped.token_ids), stopped.finish) == ([3, 4, 5], "stop")
    assert (list(empty.token_ids), empty.finish) == ([], "stop")
    assert (list(one.token_ids), one.finish) == ([3], "length")


@pytest.mark.parametrize("coalesce", [False, True])
def test_a_request_has_all_that_determines_the_answer(model: Path, coalesce: bool) -> None:
    async def test(parts: SimpleNamespace) -> dict:
        await drive.collect(parts.backend, request(5, 6))
        return parts.server.requests[0]

    body = with_servers(model, test, coalesce=coalesce)
    assert (body["prompt"], body["max_tokens"]) == ([3, 4, 5], 6)
    assert (body["temperature"], body["top_p"], body["repetition_penalty"]) == (0, 1, 1)
    assert (body["stop_token_ids"], body["ignore_eos"]) == ([STOP], True)
    assert body["stream"] is not coalesce


def test_a_connection_serves_one_request_after_another(model: Path) -> None:
    async def test(parts: SimpleNamespace) -> int:
        for id_ in range(20):
            await drive.collect(parts.backend, request(id_))
            await asyncio.sleep(0.01)  # the mark of the stream's end is still on its way
        return len(parts.server.peers)

    assert with_servers(model, test) == 1


def test_a_connection_that_was_idle_for_long_is_not_used_again(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_client, "KEEP_S", 0.02)

    async def test(parts: SimpleNamespace) -> bool:
        await drive.collect(parts.backend, request(0))
        await asyncio.sleep(0.01)
        before = set(parts.server.peers)
        await asyncio.sleep(0.05)
        await drive.collect(parts.backend, request(1))
        return before.isdisjoint(parts.server.peers)

    assert with_servers(model, test)


@pytest.mark.parametrize("in_flight", [1, 40])
def test_two_servers_share_the_load(model: Path, in_flight: int) -> None:
    async def test(parts: SimpleNamespace) -> list[int]:
        gate = asyncio.Semaphore(in_flight)

        async def one(id_: int) -> None:
            async with gate:
                await drive.collect(parts.backend, request(id_, 1 + id_ * 7 % 50))

        await asyncio.gather(*(one(id_) for id_ in range(200)))
        return [len(server.requests) for server in parts.servers]

    first, second = with_servers(model, test, count=2)
    assert first + second == 200
    assert abs(first - second) <= 20


def test_a_slow_server_gets_fewer(model: Path) -> None:
    async def test(parts: SimpleNamespace) -> list[int]:
        stuck = parts.servers[0]
        stuck.stops_after = 0
        stuck.end_streams = False
        waiting = asyncio.create_task(drive.collect(parts.backend, request(0)))
        await asyncio.sleep(0)
        for id_ in range(1, 11):
            await drive.collect(parts.backend, request(id_))
        await drive.cancel([waiting])
        return [len(server.requests) for server in parts.servers]

    assert with_servers(model, test, count=2) == [1, 10]


def test_the_server_with_the_fewest_outstanding_tokens_gets_a_request(model: Path) -> None:
    async def test(parts: SimpleNamespace) -> list[list[int]]:
        for server in parts.servers:
            server.stops_after, server.end_streams = 0, False  # so that all requests stay open
        tasks = []
        for id_, tokens in enumerate((500, 100, 100, 100, 250, 10)):
            tasks.append(asyncio.create_task(drive.collect(parts.backend, request(id_, tokens))))
            await asyncio.sleep(0.02)
        await drive.cancel(tasks)
        return [[body["max_tokens"] for body in server.requests] for server in parts.servers]

    assert with_servers(model, test, count=2) == [[500, 10], [100, 100, 100, 250]]


def test_answers_are_expected_to_be_as_long_as_those_before(model: Path) -> None:
    """Each request may have as many tokens, so that prompts decide once answers are known."""

    async def test(parts: SimpleNamespace) -> list[list[int]]:
        for id_ in range(2):
            await drive.collect(parts.backend, request(id_, 900, (3, STOP)))
        tasks = []
        for server in parts.servers:
            server.stops_after, server.end_streams = 0, False
            server.requests.clear()
        for id_, length in enumerate((80, 20, 20, 20, 20, 20)):
            one = request(id_, 900, (3,) * length)
            tasks.append(asyncio.create_task(drive.collect(parts.backend, one)))
            await asyncio.sleep(0.02)
        await drive.cancel(tasks)
        return [[len(body["prompt"]) for body in server.requests] for server in parts.servers]

    assert with_servers(model, test, count=2) == [[80, 20], [20, 20, 20, 20]]


def test_servers_get_as_much_as_they_are_fast(model: Path) -> None:
    """Their speeds are in turns of the one event loop that all of them run on."""
    lanes, rests = (4, 4, 2, 1), (0, 1, 3, 7)  # 4, 2, 1/2 and 1/8 tokens a turn

    async def test(parts: SimpleNamespace) -> list[int]:
        for server, several, rest in zip(parts.servers, lanes, rests, strict=True):
            server.lanes, server.rests = several, rest
        await drive.run_all(parts.backend, [request(id_, 40) for id_ in range(600)])
        return [len(server.requests) for server in parts.servers]

    counts = with_servers(model, test, count=4, max_running=6, coalesce=True)
    speeds = [several / (1 + rest) for several, rest in zip(lanes, rests, strict=True)]
    for count, speed in zip(counts, speeds, strict=True):
        assert abs(count - 600 * speed / sum(speeds)) < 25, counts


def test_a_server_that_hangs_takes_no_more_than_its_limit(model: Path) -> None:
    async def test(parts: SimpleNamespace) -> list[int]:
        stuck = parts.servers[1]
        stuck.stops_after, stuck.end_streams = 0, False
        run = asyncio.create_task(
            drive.run_all(parts.backend, [request(id_) for id_ in range(100)])
        )
        while len(parts.servers[0].requests) < 96 or parts.servers[0].open:
            await asyncio.sleep(0.01)
        await drive.cancel([run])
        return [len(server.requests) for server in parts.servers]

    assert with_servers(model, test, count=2, max_running=4) == [96, 4]


def test_no_more_run_at_once_than_the_limit(model: Path) -> None:
    async def test(parts: SimpleNamespace) -> int:
        most = 0

        async def watch() -> None:
            nonlocal most
            while True:
                most = max(most, *(len(server.open) for server in parts.servers))
                await asyncio.sleep(0)

        watching = asyncio.create_task(watch())
        await drive.run_all(parts.backend, [request(id_) for id_ in range(30)])
        await drive.cancel([watching])
        return most

    assert with_servers(model, test, count=2, max_running=3) == 3


def test_thousands_at_once(model: Path) -> None:
    """More than any server's queue of new connections holds."""

    async def test(parts: SimpleNamespace) -> int:
        done = await drive.run_all(parts.backend, [request(id_, 2) for id_ in range(1500)])
        return sum(len(completion.token_ids) for completion in done)

    assert with_servers(model, test) == 3000


def test_a_stream_closed_early_closes_its_connection(model: Path) -> None:
    async def test(parts: SimpleNamespace) -> tuple[int, int]:
        stream = parts.backend.stream(request(0, 100_000))
        await anext(stream)
        await stream.aclose()
        for _ in range(100):
            if parts.server.aborted:
                break
            await asyncio.sleep(0.01)
        return parts.server.aborted, len(parts.server.open)

    assert with_servers(model, test) == (1, 0)


def test_a_cancelled_request_closes_its_connection(model: Path) -> None:
    async def test(parts: SimpleNamespace) -> int:
        task = asyncio.create_task(drive.collect(parts.backend, request(0, 1_000_000)))
        await asyncio.sleep(0.1)
        await drive.cancel([task])
        await asyncio.sleep(0.1)
        return parts.server.aborted

    assert with_servers(model, test) == 1


ERROR = b'data: {"error": {"message": "out of\\nmemory", "code": 500}}\n\n'


ABORTED = b'data: {"choices":[{"finish_reason":"abort","token_ids":[]}]}\n\n'


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"dies_after": 3}, "closed the connection"),
        ({"stops_after": 3}, "ended before the answer"),
        ({"says": b'data: {"choices": [\n\n'}, "JSON|truncated"),
        ({"says": b'data: {"choices": [{"token_ids": ["a"]}]}\n\n'}, "int"),
        ({"says": b'data: {"choices": [{"text": "a"}]}\n\n'}, "no token ids"),
        ({"says": ERROR}, "out of memory"),
        ({"says": ABORTED}, "'abort'"),
        ({"status": 500}, "HTTP 500: told to fail"),
        ({"status": 404}, "completions: HTTP 404.*is this a gateway"),
    ],
)
def test_a_failed_request_names_server_and_request(
    model: Path, fault: dict[str, Any], message: str
) -> None:
    def change(server: EchoServer) -> None:
        vars(server).update(fault)

    assert re.search(message, failed(model, change))


@pytest.mark.parametrize("coalesce", [False, True])
@pytest.mark.parametrize(
    ("ids", "finish", "message"),
    [
        ([3] * 8, "length", "cut the answer after 8 of 20 tokens"),
        ([3] * 25, "length", "returned 2. tokens of 20"),
        ([3, 4, 2], "stop", "stopped at id 2, which is no stop id"),
        ([3, 10**6, STOP], "stop", "sampled id 1000000, but the model"),
        ([3, STOP, 4, STOP], "stop", "went on after a stop id"),
        ([3, STOP], "content_filter", "finish reason 'content_filter'"),
    ],
)
def test_an_answer_that_breaks_its_request_s_limits_is_a_failure(
    model: Path, ids: list[int], finish: str, message: str, coalesce: bool
) -> None:
    def change(server: EchoServer) -> None:
        server.instead = ids, finish

    assert re.search(message, failed(model, change, coalesce=coalesce))


@pytest.mark.parametrize("coalesce", [False, True])
def test_replies_that_are_not_json_are_recognised(model: Path, coalesce: bool) -> None:
    def change(server: EchoServer) -> None:
        server.pages = {"/v1/completions": (200, b"\x1f\x8b\x08\x00 packed")}

    message = failed(model, change, coalesce=coalesce)
    assert "ended before" in message if not coalesce else "gzip, which was not requested" in message


def _metrics(hits: int, enabled: str = "True") -> bytes:
    labels = f'block_size="16",enable_prefix_caching="{enabled}",engine="0"'
    return (
        f"# HELP vllm:prefix_cache_hits_total Tokens.\nvllm:cache_config_info{{{labels}}} 1.0\n"
        f'vllm:prefix_cache_hits_total{{engine="0"}} {hits}.0\n'
        f'vllm:prefix_cache_hits_total{{engine="1"}} {hits}.0\n'
    ).encode()


def test_reused_prefixes_are_read_from_metrics(
    model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(parts: SimpleNamespace) -> tuple[Reuse, Reuse, Reuse]:
        parts.server.pages["/metrics"] = (200, _metrics(100))
        await parts.backend.start()
        before = await parts.backend.reuse()
        parts.server.pages["/metrics"] = (200, _metrics(148))
        await drive.collect(parts.backend, request(0))
        after = await parts.backend.reuse()
        del parts.server.pages["/metrics"]
        return before, after, await parts.backend.reuse()

    before, after, unknown = with_servers(model, test, started=False)
    assert before == Reuse(True, 0, block_size=16)
    assert after == Reuse(True, 2 * 48, block_size=16)
    assert unknown == Reuse(True)  # it was on at the start
    assert "has prefix caching enabled" in caplog.text
    assert "--no-enable-prefix-caching" in caplog.text


@pytest.mark.parametrize("page", [(404, b"{}"), (200, b"odd"), (500, b""), None])
def test_a_server_that_does_not_tell_of_its_cache_is_not_known(
    model: Path, page: tuple[int, bytes] | None
) -> None:
    async def test(parts: SimpleNamespace) -> Reuse:
        parts.server.pages = {"/metrics": page} if page else {}
        await parts.backend.start()
        await drive.collect(parts.backend, request(0))
        return await parts.backend.reuse()

    assert with_servers(model, test, started=False) == Reuse(None)


def test_a_server_that_hangs_delays_nothing(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*_: object) -> None:
        await asyncio.Event().wait()

    async def test(parts: SimpleNamespace) -> tuple[Reuse, str | None]:
        for module in (endpoint, endpoints):
            monkeypatch.setattr(module, "CHECK_S", 0.1)
        monkeypatch.setattr(http_client.Client, "fetch", never)
        return await parts.backend.reuse(), await parts.backend.detokenize((5, 6))

    assert with_servers(model, test) == (Reuse(None), None)


def test_a_server_detokenizes_if_it_can(model: Path) -> None:
    async def test(parts: SimpleNamespace) -> list[str | None]:
        texts = [await parts.backend.detokenize((5, 6))]
        for page in (b'{"prompt": "a b"}', b'{"text": "c"}', b"odd", b'{"text": 1}', b"{}"):
            parts.server.pages = {"/detokenize": (200, page)}
            texts.append(await parts.backend.detokenize((5, 6)))
        parts.server.pages = {"/detokenize": (500, b"")}
        return [*texts, await parts.backend.detokenize((5, 6))]

    assert with_servers(model, test) == [None, "a b", "c", None, None, None, None]


def test_a_whole_answer_without_ids_is_a_failure(model: Path) -> None:
    def change(server: EchoServer) -> None:
        server.gives_ids = False

    assert "no token ids" in failed(model, change, coalesce=True)


def test_one_dead_server_of_two_ends_the_run(model: Path) -> None:
    async def test(parts: SimpleNamespace) -> str:
        run = asyncio.create_task(
            drive.run_all(parts.backend, [request(id_, 1_000_000) for id_ in range(10)])
        )
        await asyncio.sleep(0.1)
        await parts.servers[1].stop()
        with pytest.raises(EngineError) as caught:
            await run
        assert parts.urls[1] in str(caught.value)
        assert parts.urls[0] not in str(caught.value)
        return str(caught.value)

    assert "closed the connection" in with_servers(model, test, count=2)


@pytest.mark.parametrize("hangs", [False, True])
def test_without_a_measurement_the_requests_of_a_lost_server_go_to_the_others(
    model: Path, hangs: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(endpoints, "WATCH_S", 0.1)
    monkeypatch.setattr(endpoints, "HUNG_S", 0.3)

    async def test(parts: SimpleNamespace) -> int:
        for server in parts.servers:
            server.lanes = 2
        victim = parts.servers[1]
        requests = [request(id_, 30) for id_ in range(60)]
        run = asyncio.create_task(drive.run_all(parts.backend, requests))
        while len(victim.requests) < 10:
            await asyncio.sleep(0)
        if hangs:
            victim.lanes, victim.answers_health = -1000, False  # no request runs
        else:
            await victim.stop()
        answers = await run
        assert [completion.request_id for completion in answers] == list(range(60))
        assert all(list(one.token_ids) == [3, 4, 5] * 10 for one in answers)
        await parts.backend.close()
        return sum(len(server.requests) for server in parts.servers) - 60

    moved = with_servers(model, test, count=3, max_running=4, coalesce=True, failover=True)
    assert 0 < moved <= 4
    lost, message = (line for line in caplog.messages if " lost: " in line)
    assert lost.endswith("; 2 servers are left")
    assert message.endswith(f"of its requests, {moved} were answered by other servers")
    assert ("failed its health checks for 0.3 s" in message) == hangs


def test_the_last_server_that_is_lost_ends_any_run(model: Path) -> None:
    async def test(parts: SimpleNamespace) -> str:
        for server in parts.servers:
            server.lanes = 1
        run = asyncio.create_task(
            drive.run_all(parts.backend, [request(id_, 900) for id_ in range(20)])
        )
        await asyncio.sleep(0.1)
        for server in parts.servers:
            await server.stop()
        with pytest.raises(EngineError) as caught:
            await run
        return str(caught.value)

    assert "127.0.0.1" in with_servers(model, test, count=2, coalesce=True, failover=True)


def test_a_server_that_hangs_ends_the_run(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints, "WATCH_S", 0.2)
    monkeypatch.setattr(endpoints, "HUNG_S", 1.0)

    async def test(parts: SimpleNamespace) -> tuple[str, str]:
        for server in parts.servers:
            server.stops_after = 1
            server.end_streams = False
        run = [asyncio.create_task(drive.collect(parts.backend, request(i))) for i in range(4)]
        await asyncio.sleep(0.5)
        assert not any(task.done() for task in run)  # silent, but well
        parts.servers[1].answers_health = False
        results = await asyncio.gather(*run, return_exceptions=True)
        assert {type(error) for error in results} == {EngineError}
        with pytest.raises(EngineError) as later:
            await drive.collect(parts.backend, request(9))
        assert parts.urls[1] in str(later.value)
        return str(results[0]), str(results[1])

    for message in with_servers(model, test, count=2):
        assert "failed its health checks for 1 s" in message


def test_one_missed_health_check_is_nothing(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints, "WATCH_S", 0.2)
    monkeypatch.setattr(endpoints, "HUNG_S", 1.2)

    async def test(parts: SimpleNamespace) -> str:
        parts.server.health_status = 503
        await asyncio.sleep(0.5)
        parts.server.health_status = 200
        await asyncio.sleep(1.5)
        return (await drive.collect(parts.backend, request(0))).finish

    assert with_servers(model, test) == "length"


def test_closing_ends_open_streams_and_may_be_repeated(model: Path) -> None:
    async def test(parts: SimpleNamespace) -> int:
        task = asyncio.create_task(drive.collect(parts.backend, request(0, 1_000_000)))
        await asyncio.sleep(0.05)
        await parts.backend.close()
        await parts.backend.close()
        with pytest.raises(EngineError, match="closed"):
            await task
        await asyncio.sleep(0.05)
        return len(parts.server.peers)

    assert with_servers(model, test) == 0


OUT_OF_DESCRIPTORS = """
import asyncio, resource, sys
from backends import drive, endpoints
from backends.types import EngineConfig, Request
from backends.vllm_server import VllmServer

resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))

async def main():
    backend = VllmServer(EngineConfig("echo", endpoints=(sys.argv[1],), max_model_len=100))
    async with drive.running(backend):
        await drive.run_all(backend, [Request(i, (1,), 1000, frozenset()) for i in range(100)])

asyncio.run(main())
"""


def test_the_error_of_too_few_descriptors_names_the_limit(model: Path) -> None:
    async def run() -> tuple[int, str]:
        async with servers(1) as (_, urls):
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", OUT_OF_DESCRIPTORS, urls[0], stderr=subprocess.PIPE
            )
            _, err = await process.communicate()
            return process.returncode or 0, err.decode()

    code, err = asyncio.run(run())
    assert code == 1
    assert "EngineError: no file descriptors are left" in err
    assert "ulimit -Hn" in err


@given(
    st.lists(st.binary(max_size=12).map(bytes.hex).map(str.encode), max_size=8),
    st.sampled_from([b"\n", b"\r\n"]),
    st.lists(st.integers(0, 400), max_size=12),
)
def test_events_are_the_same_however_they_are_cut(
    data: list[bytes], newline: bytes, cuts: list[int]
) -> None:
    sent = b": hello" + newline + newline
    for one in data:
        sent += b"data: " + one + newline + newline
    sent += b"data: [DONE]" + newline + newline
    edges = [0, *sorted(min(cut, len(sent)) for cut in cuts), len(sent)]
    events = Events()
    pieces = [one for a, b in pairwise(edges) for one in events.feed(sent[a:b])]
    assert pieces == data


@given(st.binary(max_size=300))
def test_any_reply_of_a_server_becomes_one_short_line(data: bytes) -> None:
    message = refusal("/generate", "http://here", Response(500, data, {}))
    assert message.startswith("/generate: HTTP 500: ")
    assert len(message) <= 240
    assert "\n" not in message


@pytest.mark.parametrize(
    ("response", "url", "message"),
    [
        (Response(404, b'{"detail":"x"}', {}), "http://h", "HTTP 404: x (is this a gateway"),
        (Response(404, b"", {}), "http://h/v1", "(give the server's root URL, without /v1)"),
        (
            Response(307, b"", {b"location": b"https://other.example/health"}),
            "http://h",
            "HTTP 307: redirected to https://other.example/health: use that server",
        ),
        (Response(429, b'{"error":{"message":"rate limit"}}', {}), "http://h", "429: rate limit"),
        (Response(401, b"", {}), "http://h", "the server refuses the key (HTTP 401)"),
    ],
)
def test_a_refusal_says_what_to_do(response: Response, url: str, message: str) -> None:
    text = refusal("/health", url, response)
    assert text.startswith("/health: ")
    assert message in text
