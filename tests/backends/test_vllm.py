"""vLLM behind the interface: its options, its answers, and how it fails and ends."""

import asyncio
import json
import os
import shutil
import signal
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from backends import drive
from backends.types import Completion, Delta, EngineConfig, Request
from errors import CheckpointError, EngineError, ModelError, UsageError

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]
TINY = Path(__file__).parents[2] / "data" / "tiny" / "model"
CONFIG = EngineConfig(str(TINY), device="cpu", dtype="float32", eager=True)
STOP = frozenset({1})


def backend(config: EngineConfig):
    from backends.vllm import VllmBackend

    return VllmBackend(config)


def request(number: int, length: int = 9, limit: int = 12, stop: frozenset[int] = STOP) -> Request:
    return Request(number, (0, *range(20 + number, 19 + number + length)), limit, stop)


def engine_processes() -> list[psutil.Process]:
    """Our children but for those which end with us."""
    return [
        child
        for child in psutil.Process().children(recursive=True)
        if child.status() != psutil.STATUS_ZOMBIE and "resource_tracker" not in str(child.cmdline())
    ]


class Engine:
    """A started engine on an event loop that goes on from test to test."""

    def __init__(self, log: Path) -> None:
        self._runner = asyncio.Runner()
        self.backend = backend(replace(CONFIG, log=log, max_running=8))
        self.run(self.backend.start())

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


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    started = Engine(tmp_path_factory.mktemp("vllm") / "engine.log")
    folder = started.backend._children.folder
    yield started
    started.close()
    assert not engine_processes()
    assert not folder.exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_num_batched_token": "5"}, "did you mean max_num_batched_tokens"),
        ({"dtype": "float16"}, "use --dtype"),
        ({"tensor-parallel-size": "2"}, "use --tensor-parallel"),
        ({"block_size": "many"}, "block-size"),
        ({"enable_chunked_prefill": "perhaps"}, "must be true or false"),
        ({"speculative_config": "{"}, "speculative-config"),
    ],
)
def test_a_wrong_engine_option_is_named(options: dict[str, str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        backend(replace(CONFIG, options=options))


def test_our_options_are_told_to_vllm_in_its_words(tmp_path: Path) -> None:
    from backends.vllm import engine_args

    args = engine_args(
        EngineConfig(
            str(tmp_path),
            dtype="float32",
            max_model_len=512,
            max_running=7,
            tensor_parallel=2,
            pipeline_parallel=3,
            data_parallel=4,
            expert_parallel=True,
            memory_share=0.5,
            kv_dtype="fp8",
            quantization="fp8",
            eager=True,
            speculative=True,
            seed=9,
            options={"enable-prefix-caching": "true", "compilation_config": '{"mode": 0}'},
        )
    )
    assert (args.model, args.dtype, args.seed) == (str(tmp_path), "float32", 9)
    assert (args.max_model_len, args.max_num_seqs) == (512, 7)
    assert (args.tensor_parallel_size, args.pipeline_parallel_size) == (2, 3)
    assert (args.data_parallel_size, args.enable_expert_parallel) == (4, True)
    assert (args.gpu_memory_utilization, args.kv_cache_memory_bytes) == (0.5, None)
    assert (args.kv_cache_dtype, args.quantization, args.enforce_eager) == ("fp8", "fp8", True)
    assert args.speculative_config == {"method": "mtp", "num_speculative_tokens": 3}
    assert args.enable_prefix_caching is True
    assert args.compilation_config.mode == 0


def test_queries_leave_nothing_to_each_other_unless_asked_to() -> None:
    from backends.vllm import engine_args

    assert engine_args(CONFIG).enable_prefix_caching is False


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (None, "does not exist: --model must name"),
        ({"architectures": ["NoSuchForCausalLM"]}, "does not support NoSuchForCausalLM"),
        ({"architectures": None}, "architectures is missing"),
        ({"num_nextn_predict_layers": 0}, "no MTP layer"),
    ],
)
def test_a_model_that_it_does_not_know(changes: dict | None, said: str, tmp_path: Path) -> None:
    if changes is not None:
        config = json.loads((TINY / "config.json").read_bytes()) | changes
        (tmp_path / "config.json").write_text(json.dumps(config))
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


def test_a_device_that_it_is_not_built_for() -> None:
    with pytest.raises(UsageError, match=r"runs on cpu .*--device cuda"):
        backend(replace(CONFIG, device="cuda"))


def test_it_has_to_be_started() -> None:
    async def read() -> None:
        await anext(backend(CONFIG).stream(request(1)))

    with pytest.raises(EngineError, match="not been started"):
        asyncio.run(read())


def fails_to_start(config: EngineConfig) -> str:
    """The message of a start that fails; nothing is left of it."""

    async def start() -> None:
        async with drive.running(backend(config)):
            pass

    with pytest.raises(EngineError) as caught:
        asyncio.run(start())
    assert not engine_processes()
    return str(caught.value)


@pytest.mark.slow
@pytest.mark.engine
def test_too_little_memory(tmp_path: Path) -> None:
    log = tmp_path / "engine.log"
    said = fails_to_start(replace(CONFIG, log=log, options={"kv_cache_memory_bytes": str(1 << 20)}))
    assert said.startswith("vLLM did not start: ")
    assert "KV cache" in said
    assert str(log) in said
    assert "Traceback" in log.read_text()


@pytest.mark.slow
@pytest.mark.engine
def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        options = {
            "data_parallel_size_local": "1",
            "data_parallel_address": "127.0.0.1",
            "data_parallel_rpc_port": str(taken.getsockname()[1]),
        }
        said = fails_to_start(
            replace(CONFIG, data_parallel=2, options=options, log=tmp_path / "engine.log")
        )
    assert "Address already in use" in said


@pytest.mark.slow
@pytest.mark.engine
def test_a_start_that_takes_too_long(tmp_path: Path) -> None:
    said = fails_to_start(replace(CONFIG, start_timeout=3.0, log=tmp_path / "engine.log"))
    assert "not ready within 3 s" in said
    assert "--start-timeout" in said


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

    def test_a_coalesced_answer_is_the_same(self, engine: Engine) -> None:
        requests = [request(number, limit=20) for number in range(12)]
        streamed = engine.answers(requests)
        engine.backend.config = replace(engine.backend.config, coalesce=True)
        whole = engine.answers(requests)
        assert [one.token_ids for one in whole] == [one.token_ids for one in streamed]
        assert [len(engine.deltas(one)) for one in requests] == [1] * 12
        engine.backend.config = replace(engine.backend.config, coalesce=False)

    def test_closing_a_stream_frees_its_place(self, engine: Engine) -> None:
        async def leave() -> int:
            stream = engine.backend.stream(request(1, limit=4000, stop=frozenset()))
            await anext(stream)
            await stream.aclose()
            await asyncio.sleep(0.5)
            return engine.backend._engine.get_num_unfinished_requests()

        assert engine.run(leave()) == 0

    def test_a_prompt_that_does_not_fit_is_its_own_failure(self, engine: Engine) -> None:
        with pytest.raises(EngineError, match="request 7: vLLM: "):
            engine.answers([Request(7, tuple(range(2, 500)) * 10, 4, STOP)])
        assert engine.answers([request(1)])

    def test_it_tells_what_it_runs_with(self, engine: Engine) -> None:
        told = json.loads(json.dumps(dict(engine.backend.effective())))
        assert told["version"]
        assert told["arguments"]["max_num_seqs"] == 8
        assert told["model"]["dtype"] == "torch.float32"
        assert told["cache"]["enable_prefix_caching"] is False

    def test_an_engine_that_dies_fails_every_stream(self, engine: Engine) -> None:
        victims = [one for one in engine_processes() if "EngineCore" in one.name()]
        assert victims

        async def die() -> None:
            open_streams = [
                asyncio.create_task(
                    drive.collect(engine.backend, request(number, limit=4000, stop=frozenset()))
                )
                for number in range(4)
            ]
            await asyncio.sleep(1)
            os.kill(victims[0].pid, signal.SIGKILL)
            ended = await asyncio.gather(*open_streams, return_exceptions=True)
            assert [type(one) for one in ended] == [EngineError] * 4, ended
            assert "vLLM's engine has died" in str(ended[0])
            assert str(engine.backend.config.log) in str(ended[0])

        engine.run(die())
        with pytest.raises(EngineError):
            engine.answers([request(1)])
