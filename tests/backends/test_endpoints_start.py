import asyncio
import json
import resource
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from backends import drive, endpoints
from backends.types import EngineConfig
from backends.vllm_server import VllmServer
from errors import EngineError, ModelError, UsageError, UserError
from tests.backends.attached import LENGTH, model_folder, request, servers, with_servers
from tests.backends.echo_server import EchoServer


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return model_folder(tmp_path)


def refused(
    model: Path, change: Callable[[EchoServer], None] = lambda server: None, **fields: Any
) -> str:
    """What `start` raises on a server that was changed, and that it names the server's URL."""

    async def test(parts: SimpleNamespace) -> str:
        change(parts.server)
        with pytest.raises(UserError) as caught:
            await parts.backend.start()
        assert parts.urls[0] in str(caught.value)
        assert "\n" not in str(caught.value)
        return f"{type(caught.value).__name__}: {caught.value}"

    message: str = with_servers(model, test, started=False, **fields)
    return message


def test_what_servers_report_about_themselves(model: Path) -> None:
    async def test(parts: SimpleNamespace) -> tuple[Any, tuple[str, ...]]:
        return parts.backend.effective(), parts.urls

    effective, urls = with_servers(model, test, count=2)
    assert list(effective) == list(urls)
    card = {"model": "echo", "root": "echo", "max_model_len": 1 << 20, "version": "0.0.0"}
    assert list(effective.values()) == [card, card]
    json.dumps(effective)


def test_another_model_is_refused_with_both_names(model: Path) -> None:
    def change(server: EchoServer) -> None:
        server.model, server.root = "llama", "/models/llama"

    message = refused(model, change)
    assert "EngineError" in message
    assert str(model) in message
    assert "--served-model llama" in message
    assert "llama, not r1" in refused(model, change, served_model="r1")


@pytest.mark.parametrize(
    ("folder", "name", "root"),
    [
        ("echo", "echo", "echo"),
        ("echo", "alias", "/elsewhere/echo"),
        ("echo", "somebody/echo", "somebody/echo"),
        ("models--deepseek-ai--DeepSeek-R1/snapshots/56d4cb", "deepseek-ai/DeepSeek-R1", "x"),
        ("models--deepseek-ai--DeepSeek-R1/snapshots/56d4cb", "alias", "/models/DeepSeek-R1"),
    ],
)
def test_a_model_is_known_by_its_names(tmp_path: Path, folder: str, name: str, root: str) -> None:
    path = tmp_path / folder
    path.mkdir(parents=True)

    async def test(parts: SimpleNamespace) -> str:
        parts.server.model, parts.server.root = name, root
        await parts.backend.start()
        await drive.collect(parts.backend, request(0))
        return parts.server.requests[-1]["model"]

    assert with_servers(path, test, started=False, max_model_len=100) == name


def test_a_name_given_is_all_that_counts(model: Path) -> None:
    async def test(parts: SimpleNamespace) -> str:
        parts.server.model = parts.server.root = "llama"
        await parts.backend.start()
        return parts.server.requests[-1]["model"]

    assert with_servers(model, test, started=False, served_model="llama") == "llama"


def test_too_short_a_length_is_refused_with_both_figures(model: Path) -> None:
    def change(server: EchoServer) -> None:
        server.length = 500

    message = refused(model, change)
    assert "LengthError" in message
    assert "500" in message
    assert str(LENGTH) in message
    assert "501" in refused(model, change, max_model_len=501)


def test_a_model_directory_must_tell_its_length(tmp_path: Path) -> None:
    async def test(parts: SimpleNamespace) -> None:
        with pytest.raises(ModelError, match=r"config\.json"):
            await parts.backend.start()

    with_servers(tmp_path, test, started=False)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"health_status": 503}, "/health: HTTP 503"),
        ({"health_status": 404}, "/health: HTTP 404"),
        (
            {"health_status": 307, "head": b"location: https://other.example/health\r\n"},
            "/health: HTTP 307: redirected to https://other.example/health",
        ),
        (
            {"pages": {"/v1/models": (200, b"<html>login")}},
            "/v1/models: the response is not JSON but",
        ),
        (
            {"pages": {"/version": (200, b"\x1f\x8b")}},
            "/version: the response is JSON compressed by gzip",
        ),
        ({"pages": {"/version": (200, b"{'no'}")}}, "/version: the response is not JSON: {'no'}"),
        (
            {"pages": {"/version": (200, b'{"version": 3}')}},
            "/version: unexpected JSON",
        ),
        ({"status": 500}, "told to fail"),
        ({"says": b'data: {"choices": [{"text": "a"}]}\n\n'}, "no token ids"),
        ({"stops_after": 1}, "ended before the answer"),
        ({"key": "right"}, "MLPERF_ENDPOINT_KEY"),
    ],
)
def test_a_server_that_can_not_do_the_run_is_refused(
    model: Path, fault: dict[str, Any], message: str
) -> None:
    assert message in refused(model, lambda server: vars(server).update(fault))


def test_a_server_that_does_not_tell_of_itself_is_refused(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoints, "CHECK_S", 0.1)
    message = refused(model, lambda server: vars(server).update(answers_health=False))
    assert "within 0.1 s" in message


def test_a_healthy_server_that_generates_nothing_is_refused(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoints, "PROBE_S", 0.1)
    fault = {"stops_after": 0, "end_streams": False}
    assert "generated nothing" in refused(model, lambda server: vars(server).update(fault))


def test_the_key_goes_to_the_server_and_nowhere_else(
    model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    monkeypatch.setenv("MLPERF_ENDPOINT_KEY", "s3cret")

    async def test(parts: SimpleNamespace) -> str:
        parts.server.key = "s3cret"
        await parts.backend.start()
        await drive.collect(parts.backend, request(0))
        return repr(parts.backend.effective()) + repr(vars(parts.backend))

    assert "s3cret" not in with_servers(model, test, started=False)
    message = refused(model, lambda server: vars(server).update(key="other"))
    assert "refuses the key" in message
    assert "s3cret" not in message + caplog.text


def test_an_unreachable_server_is_named(model: Path) -> None:
    async def run() -> str:
        async with servers(1) as (_, urls):
            pass
        backend = VllmServer(EngineConfig(str(model), endpoints=urls))
        with pytest.raises(EngineError, match="can't be reached") as caught:
            await backend.start()
        await backend.close()
        assert urls[0] in str(caught.value)
        return str(caught.value)

    asyncio.run(run())


def test_a_server_that_does_not_speak_http_is_refused(model: Path) -> None:
    async def run() -> None:
        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"220 mail.example ESMTP\r\n")

        server = await asyncio.start_server(talk, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        backend = VllmServer(EngineConfig(str(model), endpoints=(f"http://127.0.0.1:{port}",)))
        with pytest.raises(EngineError, match="not HTTP"):
            await backend.start()
        await backend.close()
        server.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    "url",
    [
        "",
        "host:8000",
        "ftp://host",
        "http://",
        "http://host:port",
        "http://host/?a=b",
        "http://[::1",
        "http://a b",
    ],
)
def test_a_url_that_can_not_be_one_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="http://HOST:PORT"):
        VllmServer(EngineConfig("m", endpoints=(url,)))


def test_a_key_in_a_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(UsageError) as caught:
        VllmServer(EngineConfig("m", endpoints=("http://me:s3cret@host",)))
    assert "s3cret" not in str(caught.value)


def test_the_same_server_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="twice"):
        VllmServer(EngineConfig("m", endpoints=("http://host:80/", "http://HOST")))


def test_no_server_is_refused() -> None:
    with pytest.raises(UsageError, match="no endpoint"):
        VllmServer(EngineConfig("m"))


def test_the_descriptor_limit_is_raised(model: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(512, hard), hard))

    async def test(parts: SimpleNamespace) -> None:
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)

    try:
        with_servers(model, test)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
