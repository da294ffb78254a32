"""SGLang behind the interface: its options, its answers, and how it fails and ends."""

import asyncio
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from backends import drive
from backends.dialect import KEY
from backends.keeper import mapped_by, named
from backends.sglang_server import SglangServer
from backends.types import Backend, Completion, Delta, EngineConfig, Request, Reuse
from errors import CheckpointError, EngineError, LengthError, ModelError, UsageError
from tests.backends.echo_server import EchoServer
from tests.jobs import assert_gone, orphans, sglang_scheduler

pytestmark = [pytest.mark.sglang, pytest.mark.timeout(600)]
TINY = Path(__file__).parents[2] / "data" / "tiny" / "model"
LENGTH = 256  # tokens
CONFIG = EngineConfig(str(TINY), device="cpu", dtype="float32", max_model_len=LENGTH)
STOP = frozenset({1})


def backend(config: EngineConfig):
    from backends.sglang import SglangBackend

    return SglangBackend(config)


def told(config: EngineConfig) -> str:
    """The command line that SGLang is started with."""
    from backends.sglang_args import arguments

    return " ".join(arguments(config, "cpu")) + " "


def request(number: int, length: int = 9, limit: int = 12, stop: frozenset[int] = STOP) -> Request:
    return Request(number, (0, *range(20 + number, 19 + number + length)), limit, stop)


def engine_processes() -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process().children(recursive=True)
        if child.status() != psutil.STATUS_ZOMBIE
    ]


class Engine:
    """A started engine on an event loop that goes on from test to test."""

    def __init__(self, log: Path) -> None:
        self._runner = asyncio.Runner()
        options = {"enable_metrics": "true"}
        self.backend = backend(replace(CONFIG, log=log, max_running=8, options=options))
        self.run(self.backend.start())

    @property
    def url(self) -> str:
        return self.backend._server._endpoints[0].client.url

    def run(self, work):
        return self._runner.run(work)

    def deltas(self, one: Request) -> list[Delta]:
        async def read() -> list[Delta]:
            return [delta async for delta in self.backend.stream(one)]

        return self.run(read())

    def answers(self, requests: list[Request]) -> list[Completion]:
        return self.run(drive.run_all(self.backend, requests))

    def close(self) -> None:
        self.run(self.backend.close())
        self._runner.close()


@pytest.fixture(autouse=True)
def _few_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than a core has come to a standstill where others use them too."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv(KEY, raising=False)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    before = orphans()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        started = Engine(tmp_path_factory.mktemp("sglang") / "engine.log")
    folder = started.backend._children.folder
    assert mapped_by(engine_processes(), named(["sgl"]))
    yield started
    started.close()
    assert not engine_processes()
    assert not folder.exists()
    assert_gone([], before)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_total_token": "5"}, "did you mean max_total_tokens"),
        ({"dtype": "float16"}, "use --dtype"),
        ({"tensor-parallel-size": "2"}, "use --tensor-parallel"),
        ({"tp": "2"}, "no option 'tp'"),
        ({"port": "80"}, "is set by this run"),
        ({"page_size": "many"}, "page-size"),
        ({"disable_radix_cache": "perhaps"}, "must be true or false"),
        ({"load_format": "none"}, "load-format"),
        ({"nnodes": "2", "node_rank": "1"}, "first node"),
    ],
)
def test_a_wrong_engine_option_is_named(options: dict[str, str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        backend(replace(CONFIG, options=options))


def test_our_options_are_told_to_sglang_in_its_words() -> None:
    line = told(
        EngineConfig(
            str(TINY),
            dtype="float32",
            max_model_len=512,
            max_running=7,
            tensor_parallel=4,
            pipeline_parallel=3,
            data_parallel=2,
            attention_dp=2,
            expert_parallel=True,
            memory_share=0.5,
            kv_dtype="fp8_e4m3",
            quantization="fp8",
            attention_backend="triton",
            deterministic=True,
            eager=True,
            speculative=True,
            seed=9,
            options={
                "nnodes": "2",
                "dist-init-addr": "here:5000",
                "cuda_graph_bs_decode": "1 2 4",
                "lora_strict_loading": "false",
            },
        )
    )
    for words in (
        *(f"--model-path {TINY}", "--dtype float32", "--random-seed 9", "--device cpu"),
        *("--context-length 518", "--max-running-requests 7", "--tp-size 4", "--pp-size 3"),
        *("--dp-size 2", "--attn-dp-size 2", "--ep-size 4", "--mem-fraction-static 0.5"),
        *("--kv-cache-dtype fp8_e4m3", "--quantization fp8", "--attention-backend triton"),
        *("--enable-deterministic-inference", "--cuda-graph-backend-decode disabled"),
        *("--speculative-algorithm EAGLE", "--speculative-num-steps 3"),
        *("--speculative-eagle-topk 1", "--speculative-num-draft-tokens 4"),
        *("--nnodes 2", "--dist-init-addr here:5000", "--cuda-graph-bs-decode 1 2 4"),
        "--no-lora-strict-loading",
    ):
        assert f"{words} " in line, line
    assert "--max-total-tokens" not in line  # the memory's share says it
    assert "--enable-torch-compile" not in line


def test_queries_leave_nothing_to_each_other_unless_asked_to() -> None:
    assert "--disable-radix-cache" in told(CONFIG)
    asked = replace(CONFIG, options={"disable-radix-cache": "false"})
    assert "--disable-radix-cache" not in told(asked)


def test_nothing_is_compiled_on_a_cpu_unless_asked_to(tmp_path: Path) -> None:
    from backends.sglang_args import environment

    assert environment(CONFIG, "cpu", tmp_path)["TORCH_COMPILE_DISABLE"] == "1"
    for config, device in ((CONFIG, "cuda"), (replace(CONFIG, compile=True), "cpu")):
        assert "TORCH_COMPILE_DISABLE" not in environment(config, device, tmp_path)
    assert "--enable-torch-compile" in told(replace(CONFIG, compile=True))


def test_processes_share_the_cores_of_a_cpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from backends.sglang_args import environment

    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {2, 3, 6, 7})
    config = replace(CONFIG, tensor_parallel=2)
    found = environment(config, "cpu", tmp_path)
    assert (found["SGLANG_CPU_OMP_THREADS_BIND"], found["OMP_NUM_THREADS"]) == ("2,3|6,7", "2")
    found = environment(replace(config, data_parallel=3), "cpu", tmp_path)
    assert found["SGLANG_CPU_OMP_THREADS_BIND"] == "2|3|6|7|2|3"
    assert "SGLANG_CPU_OMP_THREADS_BIND" not in environment(CONFIG, "cpu", tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (None, "does not exist: --model must name"),
        ("[]", "not a JSON object"),
        ({"num_nextn_predict_layers": 0}, "no MTP layer"),
        ({"num_nextn_predict_layers": 1, "kv_lora_rank": None}, "architecture"),
    ],
)
def test_a_model_that_can_not_be_run(changes: dict | str | None, said: str, tmp_path: Path) -> None:
    if isinstance(changes, dict):
        changes = json.dumps(json.loads((TINY / "config.json").read_bytes()) | changes)
    if changes is not None:
        (tmp_path / "config.json").write_text(changes)
    with pytest.raises(ModelError, match=said):
        backend(replace(CONFIG, model=str(tmp_path), speculative=True))


def test_weights_that_are_none_are_told_before_it_starts(tmp_path: Path) -> None:
    shutil.copytree(TINY, tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    config = replace(CONFIG, model=str(tmp_path))
    with pytest.raises(CheckpointError, match=r"model\.safetensors is a git-lfs pointer"):
        backend(config)
    backend(replace(config, options={"load_format": "dummy"}))
    (tmp_path / "config.json").write_text("<!doctype html>")
    with pytest.raises(ModelError, match=r"config\.json is an HTML page"):
        backend(replace(config, speculative=True))


def test_a_length_that_the_model_does_not_have() -> None:
    with pytest.raises(LengthError, match="5000"):
        backend(replace(CONFIG, max_model_len=5000))


def test_a_device_that_is_not_here() -> None:
    with pytest.raises(UsageError, match=r"finds no GPU .*--device cuda"):
        backend(replace(CONFIG, device="cuda"))


def test_it_has_to_be_started() -> None:
    async def read() -> None:
        await anext(backend(CONFIG).stream(request(1)))

    with pytest.raises(EngineError, match="not been started"):
        asyncio.run(read())


def fails_to_start(config: EngineConfig) -> str:
    """The message of a start that fails; nothing is left of it."""
    before = orphans()

    async def start() -> None:
        async with drive.running(backend(config)):
            pass

    with pytest.raises(EngineError) as caught:
        asyncio.run(start())
    assert not engine_processes()
    assert_gone([], before)
    return str(caught.value)


@pytest.mark.slow
@pytest.mark.engine
def test_too_little_memory(tmp_path: Path) -> None:
    log = tmp_path / "engine.log"
    said = fails_to_start(replace(CONFIG, log=log, memory_share=0.0001))
    assert said.startswith("SGLang did not start: ")
    assert "no GPU memory for the KV cache" in said.splitlines()[0]
    assert str(log) in said
    assert "Traceback" in log.read_text()


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.parametrize("answers", [False, True])
def test_a_port_that_another_process_took(
    answers: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its choice and SGLang's use of it; the other one may be well, and even SGLang."""

    async def start() -> str:
        other = EchoServer()
        other.answers_health = answers
        url = await other.start()
        monkeypatch.setattr("backends.sglang._free_port", lambda: int(url.rpartition(":")[2]))
        with pytest.raises(EngineError) as caught:
            async with drive.running(backend(replace(CONFIG, log=tmp_path / "engine.log"))):
                pass
        await other.stop()
        return str(caught.value)

    began = time.monotonic()
    said = asyncio.run(start())
    assert ("/server_info: HTTP 404" if answers else "found its port taken") in said
    assert not engine_processes()
    assert time.monotonic() - began < 240


@pytest.mark.slow
@pytest.mark.engine
def test_a_start_that_takes_too_long(tmp_path: Path) -> None:
    said = fails_to_start(replace(CONFIG, start_timeout=3.0, log=tmp_path / "engine.log"))
    assert "not ready within 3 s" in said
    assert "--start-timeout" in said


@pytest.mark.slow
@pytest.mark.engine
def test_prefixes_that_were_reused_are_counted(tmp_path: Path) -> None:
    """Where somebody has the cache left on."""
    config = replace(CONFIG, log=tmp_path / "engine.log", options={"disable-radix-cache": "false"})
    prompt = (0, *range(10, 74))

    async def run(one: Backend) -> list[Reuse]:
        found = []
        async with drive.running(one):
            for number in range(2):
                await drive.collect(one, Request(number, prompt, 4, frozenset()))
                found.append(await one.reuse())
        return found

    first, second = asyncio.run(run(backend(config)))
    assert first.enabled
    assert second.largest is not None
    assert first.largest is not None
    assert first.largest < 8  # of the probe's, at most
    assert second.largest >= 60
    log = tmp_path / "engine.log"
    assert log.stat().st_mode & 0o77 == 0
    assert "'api_key': '-'" in log.read_text()


@pytest.mark.slow
@pytest.mark.engine
class TestStarted:
    """On one engine; the last test kills it."""

    def test_deltas_are_new_ids_only(self, engine: Engine) -> None:
        deltas = engine.deltas(request(1, limit=12, stop=frozenset()))
        assert len(deltas) > 1
        assert all(delta.token_ids for delta in deltas)
        assert [delta.finish for delta in deltas] == [None] * (len(deltas) - 1) + ["length"]
        assert sum(len(delta.token_ids) for delta in deltas) == 12
        assert [delta.at_ns for delta in deltas] == sorted(delta.at_ns for delta in deltas)

    def test_the_stop_id_is_not_among_them(self, engine: Engine) -> None:
        (free,) = engine.answers([request(1, stop=frozenset())])
        stop = free.token_ids[5]
        (held,) = engine.answers([request(1, stop=frozenset({stop, 1}))])
        assert held.finish == "stop"
        assert held.token_ids == free.token_ids[: free.token_ids.index(stop)]

    def test_an_end_of_the_model_s_own_is_no_silent_one(self, engine: Engine) -> None:
        """SGLang stops at it where a request names other ids."""
        prompts = [request(number, limit=120, stop=frozenset({639})) for number in range(8)]
        with pytest.raises(EngineError, match=r"request \d: stopped at 1, which is no stop"):
            engine.answers(prompts)

    def test_a_coalesced_answer_is_the_same(self, engine: Engine) -> None:
        requests = [request(number, limit=20) for number in range(12)]
        streamed = engine.answers(requests)
        server = engine.backend._server
        server.config = replace(server.config, coalesce=True)
        whole = engine.answers(requests)
        assert [one.token_ids for one in whole] == [one.token_ids for one in streamed]
        assert [len(engine.deltas(one)) for one in requests] == [1] * 12
        server.config = replace(server.config, coalesce=False)

    @pytest.mark.parametrize("prompt", [LENGTH - 1, LENGTH - 20])
    def test_an_answer_may_fill_the_length(self, engine: Engine, prompt: int) -> None:
        limit = LENGTH - prompt
        (full,) = engine.answers([Request(1, (5,) * prompt, limit, frozenset())])
        assert (len(full.token_ids), full.finish) == (limit, "length")

    def test_closing_a_stream_frees_its_place(self, engine: Engine) -> None:
        async def aborted() -> float:
            metrics = await engine.backend._server._endpoints[0].get("/metrics")
            lines = metrics.decode().splitlines()
            found = [line for line in lines if line.startswith("sglang:num_aborted_requests_total")]
            return sum(float(line.rpartition(" ")[2]) for line in found)

        async def leave() -> float:
            before = await aborted()
            stream = engine.backend.stream(request(1, limit=240, stop=frozenset()))
            async with aclosing(stream):
                await anext(stream)
            until = time.monotonic() + 5
            while not (count := await aborted() - before) and time.monotonic() < until:
                await asyncio.sleep(0.1)
            return count

        assert engine.run(leave()) == 1

    def test_a_prompt_that_does_not_fit_is_its_own_failure(self, engine: Engine) -> None:
        with pytest.raises(EngineError, match=r"request 7: .*too?.*long|maximum|exceeds"):
            engine.answers([Request(7, (5,) * (LENGTH + 10), 4, STOP)])
        assert engine.answers([request(1)])

    def test_an_id_that_would_kill_it_is_not_sent(self, engine: Engine) -> None:
        with pytest.raises(EngineError, match="request 7: the prompt holds id 640"):
            engine.answers([Request(7, (0, 640), 4, STOP)])
        assert engine.answers([request(1)])

    def test_it_tells_what_it_runs_with_and_not_its_key(self, engine: Engine) -> None:
        found = json.dumps(dict(engine.backend.effective()))
        server = json.loads(found)["server"]
        assert server["version"]
        assert server["max_running_requests"] == 8
        assert (server["dtype"], server["disable_radix_cache"]) == ("float32", True)
        assert (server["host"], server["api_key"]) == ("127.0.0.1", "-")
        folder = engine.backend._children.folder
        key = json.loads((folder / "server.yaml").read_text())["api-key"]
        assert key not in found
        assert (folder / "server.yaml").stat().st_mode & 0o77 == 0
        for process in engine_processes():
            assert key not in str(process.cmdline())

    def test_another_client_needs_its_key(
        self, engine: Engine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def attach() -> list[Completion]:
            attached = SglangServer(replace(CONFIG, endpoints=(engine.url,)))
            async with drive.running(attached):
                return await drive.run_all(attached, [request(number) for number in range(4)])

        for wrong in (None, "wrong"):
            if wrong:
                monkeypatch.setenv(KEY, wrong)
            with pytest.raises(EngineError, match="refuses the key"):
                engine.run(attach())
        folder = engine.backend._children.folder
        monkeypatch.setenv(KEY, json.loads((folder / "server.yaml").read_text())["api-key"])
        ours = engine.answers([request(number) for number in range(4)])
        assert [one.token_ids for one in engine.run(attach())] == [one.token_ids for one in ours]

    def test_a_server_that_is_too_short_is_refused(
        self, engine: Engine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = engine.backend._children.folder
        monkeypatch.setenv(KEY, json.loads((folder / "server.yaml").read_text())["api-key"])
        config = replace(CONFIG, endpoints=(engine.url,), max_model_len=LENGTH + 1)
        with pytest.raises(LengthError, match=f"{LENGTH} tokens and the run may need {LENGTH + 1}"):
            engine.run(SglangServer(config).start())

    def test_a_server_that_dies_fails_every_stream(self, engine: Engine) -> None:
        victim = sglang_scheduler(psutil.Process(engine.backend._process.pid).children())

        async def die() -> None:
            open_streams = [
                asyncio.create_task(
                    drive.collect(engine.backend, request(number, limit=240, stop=frozenset()))
                )
                for number in range(4)
            ]
            await asyncio.sleep(1)
            os.kill(victim.pid, signal.SIGKILL)
            ended = await asyncio.gather(*open_streams, return_exceptions=True)
            assert [type(one) for one in ended] == [EngineError] * 4, ended
            for one in ended:
                assert "SGLang has died" in str(one)
                assert "crashed with exit code -9" in str(one).splitlines()[0]
                assert str(engine.backend.config.log) in str(one)

        engine.run(die())
        with pytest.raises(EngineError, match="SGLang has died"):
            engine.answers([request(1)])
