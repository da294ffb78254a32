"""The contract that every engine must meet, tested with real vLLM and real SGLang.

Most of it is asked of one engine, started once, which the last test kills.
"""

import asyncio
import json
import os
import shutil
import signal
import time
from collections.abc import Coroutine, Iterator
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from backends import drive
from backends.dialect import KEY
from backends.keeper import mapped_by, named
from backends.sglang_server import SglangServer
from backends.types import Backend, Completion, Delta, Request, Reuse
from data import workload
from errors import CheckpointError, EngineError, LengthError, ModelError, UsageError
from tests.backends.engines import (
    CONFIG,
    LENGTH,
    STOP,
    TINY,
    assert_ended,
    engine_processes,
    failed_start,
    load,
    request,
)
from tests.backends.router import router
from tests.effort import cases
from tests.jobs import check_compliance, orphans, sglang_scheduler, vllm_core

pytestmark = pytest.mark.timeout(1200)

NAMES = [pytest.param(name, marks=getattr(pytest.mark, name)) for name in ("vllm", "sglang")]
VICTIM = {"vllm": vllm_core, "sglang": sglang_scheduler}
DEATH = {"vllm": "vLLM's engine has died", "sglang": "SGLang has died"}
CRASH = {"vllm": "", "sglang": "crashed with exit code -9"}  # vLLM gives no more details
TITLE = {"vllm": "vLLM", "sglang": "SGLang"}

each_engine = pytest.mark.parametrize("name", NAMES)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        pytest.param(name, options, message, marks=getattr(pytest.mark, name))
        for name, options, message in (
            ("vllm", {"max_num_batched_token": "5"}, "did you mean max_num_batched_tokens"),
            ("vllm", {"dtype": "float16"}, "use --dtype"),
            ("vllm", {"tensor-parallel-size": "2"}, "use --tensor-parallel"),
            ("vllm", {"block_size": "many"}, "block-size"),
            ("vllm", {"enable_chunked_prefill": "perhaps"}, "must be true or false"),
            ("vllm", {"speculative_config": "{"}, "speculative-config"),
            ("sglang", {"max_total_token": "5"}, "did you mean max_total_tokens"),
            ("sglang", {"dtype": "float16"}, "use --dtype"),
            ("sglang", {"tensor-parallel-size": "2"}, "use --tensor-parallel"),
            ("sglang", {"tp": "2"}, "no option 'tp'"),
            ("sglang", {"port": "80"}, "is set by this run"),
            ("sglang", {"page_size": "many"}, "page-size"),
            ("sglang", {"disable_radix_cache": "perhaps"}, "must be true or false"),
            ("sglang", {"load_format": "none"}, "load-format"),
            ("sglang", {"nnodes": "2", "node_rank": "1"}, "dist_init_addr=HOST:PORT"),
        )
    ],
)
def test_a_wrong_engine_option_is_named(name: str, options: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load(name, replace(CONFIG, options=options))


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        pytest.param(name, changes, message, marks=getattr(pytest.mark, name))
        for name, changes, message in (
            ("vllm", None, "does not exist: --model must name"),
            (
                "vllm",
                {"architectures": ["NoSuchForCausalLM"]},
                "does not support NoSuchForCausalLM",
            ),
            ("vllm", {"architectures": None}, "architectures is missing"),
            ("vllm", {"num_nextn_predict_layers": 0}, "no MTP layer"),
            ("sglang", None, "does not exist: --model must name"),
            ("sglang", [], "not a JSON object"),
            ("sglang", {"num_nextn_predict_layers": 0}, "no MTP layer"),
            ("sglang", {"kv_lora_rank": None}, "architecture"),
        )
    ],
)
def test_a_model_that_can_not_be_run(
    name: str, changes: dict | list | None, message: str, tmp_path: Path
) -> None:
    if isinstance(changes, dict):
        changes = json.loads((TINY / "model" / "config.json").read_bytes()) | changes
    if changes is not None:
        (tmp_path / "config.json").write_text(json.dumps(changes))
    with pytest.raises(ModelError, match=message):
        load(name, replace(CONFIG, model=str(tmp_path), speculative=True))


@each_engine
def test_weights_that_are_none_are_found_before_it_starts(name: str, tmp_path: Path) -> None:
    shutil.copytree(TINY / "model", tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    config = replace(CONFIG, model=str(tmp_path))
    with pytest.raises(CheckpointError, match=r"model\.safetensors is a git-lfs pointer"):
        load(name, config)
    load(name, replace(config, options={"load_format": "dummy"}))
    (tmp_path / "config.json").write_text("<!doctype html>")
    with pytest.raises(ModelError, match=r"config\.json is an HTML page"):
        load(name, replace(config, speculative=True))


@each_engine
def test_a_device_that_is_not_here(name: str) -> None:
    message = {"vllm": r"runs on cpu .*--device cuda", "sglang": r"finds no GPU .*--device cuda"}
    with pytest.raises(UsageError, match=message[name]):
        load(name, replace(CONFIG, device="cuda"))


@each_engine
def test_it_has_to_be_started(name: str) -> None:
    async def read() -> None:
        await anext(aiter(load(name, CONFIG).stream(request(1))))

    with pytest.raises(EngineError, match="not been started"):
        asyncio.run(read())


@pytest.mark.slow
@pytest.mark.engine
@each_engine
def test_too_little_memory(name: str, tmp_path: Path) -> None:
    log = tmp_path / "engine.log"
    config = {
        "vllm": replace(
            CONFIG, options={"kv_cache_memory_bytes": str(1 << 20)}, max_model_len=None
        ),
        # not by a share of memory: other processes free some of that while weights are loaded
        "sglang": replace(CONFIG, options={"max_total_tokens": "0"}),
    }
    message = failed_start(name, replace(config[name], log=log))
    assert message.startswith(f"{TITLE[name]} did not start: ")
    assert {"vllm": "KV cache", "sglang": "Not enough memory"}[name] in message.splitlines()[0]
    assert str(log) in message
    assert "Traceback" in log.read_text()


@pytest.mark.slow
@pytest.mark.engine
@each_engine
def test_a_start_that_takes_too_long(name: str, tmp_path: Path) -> None:
    config = replace(CONFIG, start_timeout=3.0, log=tmp_path / "engine.log")
    message = failed_start(name, config)
    assert "not ready within 3 s" in message
    assert "--start-timeout" in message


@dataclass
class Started:
    """A started engine on an event loop that several tests use."""

    name: str
    backend: Any  # tests read private attributes of an engine
    runner: asyncio.Runner

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(work)

    def deltas(self, one: Request) -> list[Delta]:
        async def read() -> list[Delta]:
            return [delta async for delta in self.backend.stream(one)]

        return self.run(read())

    def answers(self, requests: list[Request]) -> list[Completion]:
        return self.run(drive.run_all(self.backend, requests))

    def coalesce(self, whole: bool) -> None:
        """Set whether it coalesces answers from now on."""
        backend = getattr(self.backend, "_server", self.backend)  # SGLang's is behind a client
        backend.config = replace(backend.config, coalesce=whole)


@pytest.fixture(scope="module", params=NAMES)
def engine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Started]:
    before = orphans()
    log = tmp_path_factory.mktemp(request.param) / "engine.log"
    options = {"enable_metrics": "true"} if request.param == "sglang" else {}
    backend: Any = load(request.param, replace(CONFIG, log=log, max_running=8, options=options))
    with asyncio.Runner() as runner:
        runner.run(backend.start())
        folder = backend._children.folder
        if request.param == "sglang":  # else the check for its files at the end would check nothing
            assert mapped_by(engine_processes(), named(["sgl"]))
        yield Started(request.param, backend, runner)
        runner.run(backend.close())
    assert_ended(request.param, before)
    assert not folder.exists()


only_sglang = pytest.mark.parametrize("engine", NAMES[1:], indirect=True, scope="module")
only_vllm = pytest.mark.parametrize("engine", NAMES[:1], indirect=True, scope="module")


@pytest.mark.slow
@pytest.mark.engine
class TestStarted:
    """On one engine."""

    def test_greedy_answers_are_those_of_the_pytorch_engine(self, engine: Started) -> None:
        rows = range(0, 240, cases(4, 1))
        work = workload.build(TINY / "final_output.parquet", None, CONFIG, 400)
        requests = [work.request(row, row) for row in rows]

        async def run(backend: Backend) -> list[Completion]:
            async with drive.running(backend):
                return await drive.run_all(backend, requests)

        expected = asyncio.run(run(load("pytorch", replace(CONFIG, eager=False))))
        answers = engine.answers(requests)
        differing = [
            row
            for row, ours, theirs in zip(rows, expected, answers, strict=True)
            if (ours.token_ids, ours.finish) != (theirs.token_ids, theirs.finish)
        ]
        assert not differing
        assert sum(one.finish == "stop" for one in answers) > len(requests) / 2

    def test_deltas_are_new_ids_only(self, engine: Started) -> None:
        deltas = engine.deltas(request(1, limit=12, stop=frozenset()))
        assert len(deltas) > 1
        assert all(delta.token_ids for delta in deltas)
        assert [delta.finish for delta in deltas] == [None] * (len(deltas) - 1) + ["length"]
        assert sum(len(delta.token_ids) for delta in deltas) == 12
        assert [delta.at_ns for delta in deltas] == sorted(delta.at_ns for delta in deltas)

    def test_the_stop_id_is_not_among_them(self, engine: Started) -> None:
        (free,) = engine.answers([request(1, stop=frozenset())])
        stop = free.token_ids[5]
        (held,) = engine.answers([request(1, stop=frozenset({stop, 1}))])
        assert held.finish == "stop"
        assert held.token_ids == free.token_ids[: list(free.token_ids).index(stop)]

    def test_a_coalesced_answer_is_the_same(self, engine: Started) -> None:
        requests = [request(number, limit=20) for number in range(12)]
        streamed = engine.answers(requests)
        engine.coalesce(True)
        whole = engine.answers(requests)
        assert [one.token_ids for one in whole] == [one.token_ids for one in streamed]
        assert [len(engine.deltas(one)) for one in requests] == [1] * 12
        engine.coalesce(False)

    @pytest.mark.parametrize("prompt", [LENGTH - 1, LENGTH - 20])
    def test_an_answer_may_fill_the_length(self, engine: Started, prompt: int) -> None:
        limit = LENGTH - prompt
        (full,) = engine.answers([Request(1, (5,) * prompt, limit, frozenset())])
        assert (len(full.token_ids), full.finish) == (limit, "length")

    def test_a_prompt_that_does_not_fit_is_its_own_failure(self, engine: Started) -> None:
        with pytest.raises(EngineError, match=r"request 7: .*too?.*long|maximum|exceeds"):
            engine.answers([Request(7, (5,) * (LENGTH + 10), 4, STOP)])
        assert engine.answers([request(1)])

    @only_vllm
    def test_closing_a_stream_aborts_its_request_in_vllm(self, engine: Started) -> None:
        async def leave() -> int:
            stream = engine.backend.stream(request(1, limit=900, stop=frozenset()))
            await anext(stream)
            await stream.aclose()
            await asyncio.sleep(0.5)
            return engine.backend._engine.get_num_unfinished_requests()

        assert engine.run(leave()) == 0

    @only_vllm
    def test_its_configuration_is_known(self, engine: Started) -> None:
        configuration = json.loads(json.dumps(dict(engine.backend.effective())))
        assert configuration["version"]
        assert configuration["arguments"]["max_num_seqs"] == 8
        assert configuration["model"]["dtype"] == "torch.float32"
        assert configuration["cache"]["enable_prefix_caching"] is False

    @only_sglang
    def test_closing_a_stream_aborts_its_request_in_sglang(self, engine: Started) -> None:
        async def aborted() -> float:
            metrics = await engine.backend._server._endpoints[0].get("/metrics")
            lines = metrics.decode().splitlines()
            totals = [
                line for line in lines if line.startswith("sglang:num_aborted_requests_total")
            ]
            return sum(float(line.rpartition(" ")[2]) for line in totals)

        async def leave() -> float:
            before = await aborted()
            stream = engine.backend.stream(request(1, limit=900, stop=frozenset()))
            async with aclosing(stream):
                await anext(stream)
            until = time.monotonic() + 5
            while not (count := await aborted() - before) and time.monotonic() < until:
                await asyncio.sleep(0.1)
            return count

        assert engine.run(leave()) == 1

    @only_sglang
    def test_an_end_of_the_model_s_own_is_no_silent_one(self, engine: Started) -> None:
        """SGLang stops at it where a request names other ids."""
        prompts = [request(number, limit=120, stop=frozenset({639})) for number in range(8)]
        with pytest.raises(EngineError, match=r"request \d: stopped at 1, which is no stop"):
            engine.answers(prompts)

    @only_sglang
    def test_an_id_that_would_kill_it_is_not_sent(self, engine: Started) -> None:
        with pytest.raises(EngineError, match="request 7: the prompt holds id 640"):
            engine.answers([Request(7, (0, 640), 4, STOP)])
        assert engine.answers([request(1)])

    @only_sglang
    def test_its_configuration_is_known_but_not_its_key(self, engine: Started) -> None:
        configuration = json.dumps(dict(engine.backend.effective()))
        server = json.loads(configuration)["server"]
        assert server["version"]
        assert server["max_running_requests"] == 8
        assert (server["dtype"], server["disable_radix_cache"]) == ("float32", True)
        assert (server["host"], server["api_key"]) == ("127.0.0.1", "-")
        key = key_of(engine)
        assert key not in configuration
        assert (engine.backend._children.folder / "server.yaml").stat().st_mode & 0o77 == 0
        for process in engine_processes():
            assert key not in str(process.cmdline())

    @only_sglang
    def test_another_client_needs_its_key(
        self, engine: Started, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        requests = [request(number) for number in range(4)]

        async def attach() -> list[Completion]:
            attached = SglangServer(replace(CONFIG, endpoints=(url_of(engine),)))
            async with drive.running(attached):
                return await drive.run_all(attached, requests)

        monkeypatch.delenv(KEY, raising=False)
        for wrong in (None, "wrong"):
            if wrong:
                monkeypatch.setenv(KEY, wrong)
            with pytest.raises(EngineError, match="refuses the key"):
                engine.run(attach())
        monkeypatch.setenv(KEY, key_of(engine))
        ours = engine.answers(requests)
        assert [one.token_ids for one in engine.run(attach())] == [one.token_ids for one in ours]

    @only_sglang
    def test_a_router_is_as_the_server_behind_it(
        self, engine: Started, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(KEY, key_of(engine))
        requests = [request(number) for number in range(4)]

        async def attach(url: str, failover: bool) -> None:
            config = replace(CONFIG, endpoints=(url,), coalesce=True, failover=failover)
            async with drive.running(attached := SglangServer(config)):
                answers = await drive.run_all(attached, requests)
                assert [one.token_ids for one in answers] == [one.token_ids for one in ours]
                assert attached.effective()[url]["version"] == "SGLang's router, servers: 1"
                # of whether it has a cache nothing is forwarded, but what it has reused is
                assert await attached.reuse() == Reuse(None, 0, 0)
                # only a stream is not computed again behind it
                deltas = [delta async for delta in attached.stream(requests[0])]
                assert (len(deltas) > 1) == (not failover)

        ours = engine.answers(requests)
        with router([url_of(engine)], key_of(engine), tmp_path / "router.log") as url:
            for failover in (False, True):
                engine.run(attach(url, failover))

    @only_sglang
    def test_a_server_that_is_too_short_is_refused(
        self, engine: Started, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(KEY, key_of(engine))
        config = replace(CONFIG, endpoints=(url_of(engine),), max_model_len=LENGTH + 1)
        with pytest.raises(LengthError, match=f"{LENGTH} tokens and the run may need {LENGTH + 1}"):
            engine.run(SglangServer(config).start())

    @only_sglang
    def test_the_logs_of_a_run_hold_to_test06(
        self, engine: Started, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(KEY, key_of(engine))
        check_compliance("sglang", url_of(engine), tmp_path, "--max-model-len", str(LENGTH))

    def test_an_engine_that_dies_fails_every_stream(self, engine: Started) -> None:
        """The last test."""
        victim = VICTIM[engine.name](psutil.Process().children(recursive=True))
        requests = [request(number, limit=900, stop=frozenset()) for number in range(4)]

        async def die() -> None:
            streams = [asyncio.create_task(drive.collect(engine.backend, one)) for one in requests]
            await asyncio.sleep(1)
            os.kill(victim.pid, signal.SIGKILL)
            for ended in await asyncio.gather(*streams, return_exceptions=True):
                assert isinstance(ended, EngineError), ended
                assert DEATH[engine.name] in str(ended)
                assert CRASH[engine.name] in str(ended).splitlines()[0]
                assert str(engine.backend.config.log) in str(ended)

        engine.run(die())
        with pytest.raises(EngineError, match=DEATH[engine.name]):
            engine.answers([request(1)])


def url_of(engine: Started) -> str:
    """The URL of our SGLang server."""
    url: str = engine.backend._server._endpoints[0].client.url
    return url


def key_of(engine: Started) -> str:
    """The API key of our SGLang server."""
    folder: Path = engine.backend._children.folder
    key: str = json.loads((folder / "server.yaml").read_text())["api-key"]
    return key
