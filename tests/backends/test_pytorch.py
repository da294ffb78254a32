"""The engine behind the backend interface: one process here, several under torchrun."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from backends.pytorch import PyTorchBackend
from backends.types import Delta, EngineConfig, Request, Sampling
from errors import (
    EngineError,
    LaunchError,
    LengthError,
    ModelError,
    UsageError,
)
from ref_dsinfer.engine import Engine
from ref_dsinfer.kernels import flashinfer_mla
from ref_dsinfer.options import EngineOptions
from tests.torchrun import Torchrun

WORKER = Path(__file__).with_name("serve_ranks.py")


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of the smallest useful size."""
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    torch.manual_seed(0)
    shape = DeepseekV3Config(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=96,
        moe_intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        n_shared_experts=1,
        n_routed_experts=8,
        num_experts_per_tok=2,
        n_group=4,
        topk_group=2,
        first_k_dense_replace=1,
        q_lora_rank=None,
        kv_lora_rank=32,
        qk_nope_head_dim=16,
        qk_rope_head_dim=16,
        v_head_dim=16,
        max_position_embeddings=512,
        initializer_range=0.1,
    )
    path = tmp_path_factory.mktemp("model")
    DeepseekV3ForCausalLM(shape).save_pretrained(path)
    return path


def config(model: Path, **changes: object) -> EngineConfig:
    fixed: dict[str, Any] = {"device": "cpu", "dtype": "float32", "options": {"threads": "1"}}
    return EngineConfig(str(model), **(fixed | changes))


def request(number: int, limit: int = 10, **changes: object) -> Request:
    fixed: dict[str, Any] = {"prompt_ids": tuple(range(number + 1)), "stop_ids": frozenset()}
    return Request(id=number, max_new_tokens=limit, **(fixed | changes))


def expected(model: Path, requests: list[Request]) -> dict[int, list[int]]:
    """The bare engine's answers, one request after the other."""
    engine = Engine(model, EngineOptions("cpu", "float32", threads=1))
    answers: dict[int, list[int]] = {}
    for one in requests:
        engine.add(one.id, one.prompt_ids, one.max_new_tokens, one.stop_ids)
        answers[one.id] = []
        while engine.busy:
            answers[one.id] += [i for output in engine.step() for i in output.token_ids]
    return answers


def serve(backend: PyTorchBackend, body: Callable[[], Awaitable[None]]) -> None:
    """Run `body` on an event loop between start and close."""

    async def whole() -> None:
        await backend.start()
        try:
            await body()
        finally:
            await asyncio.wait_for(backend.close(), 20)

    asyncio.run(asyncio.wait_for(whole(), 60))


async def collect(backend: PyTorchBackend, one: Request) -> list[Delta]:
    return [delta async for delta in backend.stream(one)]


def test_the_record_of_a_run_says_which_kernels_it_used(model: Path) -> None:
    backend = PyTorchBackend(config(model))

    async def body() -> None:
        assert backend.effective()["kernels"] == "own"

    serve(backend, body)


def test_a_package_that_the_engine_misses_is_a_users_error(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It leaves the engine's thread as it is, for `entrypoint`."""
    monkeypatch.setitem(sys.modules, "flashinfer", None)
    monkeypatch.setattr(flashinfer_mla, "refuse_unsupported", lambda *arguments: None)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    backend = PyTorchBackend(config(model, kernels="flashinfer"))
    with pytest.raises(ModuleNotFoundError, match="flashinfer"):
        asyncio.run(backend.start())


def test_streams_carry_one_delta_a_step_and_end_once(model: Path) -> None:
    requests = [request(number, limit=3 + 2 * number) for number in range(20)]
    answers = expected(model, requests)
    stop = answers[19][6]
    requests[19] = request(19, limit=41, stop_ids=frozenset([stop]))
    answers[19] = answers[19][: answers[19].index(stop)]
    backend = PyTorchBackend(config(model, max_running=7))

    async def body() -> None:
        began = time.monotonic_ns()
        streams = await asyncio.gather(*(collect(backend, one) for one in requests))
        for one, deltas in zip(requests, streams, strict=True):
            assert [i for delta in deltas for i in delta.token_ids] == answers[one.id]
            assert all(delta.finish is None for delta in deltas[:-1])
            assert deltas[-1].finish == ("stop" if one.id == 19 else "length")
            times = [began, *(delta.at_ns for delta in deltas), time.monotonic_ns()]
            assert times == sorted(times)
            assert len(deltas) == len(answers[one.id]) + (one.id == 19)

    serve(backend, body)


def test_coalesced_streams_have_one_delta_with_the_same_tokens(model: Path) -> None:
    requests = [request(number, limit=5 + number) for number in range(5)]
    backend = PyTorchBackend(config(model, coalesce=True))

    async def body() -> None:
        streams = await asyncio.gather(*(collect(backend, one) for one in requests))
        assert [len(deltas) for deltas in streams] == [1] * 5
        answers = {one.id: list(d[0].token_ids) for one, d in zip(requests, streams, strict=True)}
        assert answers == expected(model, requests)

    serve(backend, body)


def test_closing_a_stream_early_ends_its_request_in_the_engine(model: Path) -> None:
    backend = PyTorchBackend(config(model, max_running=2))

    async def body() -> None:
        assert backend._engine
        scheduler = backend._engine.scheduler
        endless = [backend.stream(request(number, limit=400)) for number in range(2)]
        for stream in endless:
            await anext(stream)
        waiting = asyncio.create_task(collect(backend, request(2, limit=400)))
        while not scheduler.waiting:
            await asyncio.sleep(0)
        waiting.cancel()
        await endless[0].aclose()
        assert len(await collect(backend, request(3, limit=4))) == 4
        assert [sequence.id for sequence in scheduler.running] == [1]
        assert not scheduler.waiting
        await endless[1].aclose()

    serve(backend, body)


def test_sampling_reaches_the_engine(model: Path) -> None:
    backend = PyTorchBackend(config(model))

    async def body() -> None:
        drawn = request(3, limit=30, sampling=Sampling(temperature=1.5))
        greedy, first = await asyncio.gather(
            collect(backend, request(4, 30)), collect(backend, drawn)
        )
        assert [d.token_ids for d in await collect(backend, drawn)] == [d.token_ids for d in first]
        greedy = await collect(backend, request(3, 30))
        assert [d.token_ids for d in greedy] != [d.token_ids for d in first]

    serve(backend, body)


def test_a_bad_request_ends_its_own_stream_only(model: Path) -> None:
    backend = PyTorchBackend(config(model, max_model_len=20))

    async def body() -> None:
        good = asyncio.create_task(collect(backend, request(1, limit=15)))
        with pytest.raises(LengthError, match="20 tokens"):
            await collect(backend, request(2, prompt_ids=(1,) * 20))
        with pytest.raises(UsageError, match="temperature"):
            await collect(backend, request(2, sampling=Sampling(temperature=-1.0)))
        assert len(await good) == 15

    serve(backend, body)


def test_a_fault_in_the_engine_reaches_every_open_stream_with_its_origin(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fault is a cache that the test makes too short."""
    backend = PyTorchBackend(config(model))

    async def body() -> None:
        streams = [asyncio.create_task(collect(backend, request(n, 400))) for n in range(3)]
        await asyncio.sleep(0.1)
        assert backend._engine
        backend._engine.runner.cache._layers = torch.empty(0)
        for stream in streams:
            with pytest.raises(RuntimeError, match="engine stopped") as caught:
                await asyncio.wait_for(stream, 10)
            assert isinstance(caught.value.__cause__, IndexError)
        with pytest.raises(RuntimeError, match="engine stopped"):
            await collect(backend, request(9))

    serve(backend, body)


def test_close_ends_open_streams_and_may_come_twice_or_before_start(model: Path) -> None:
    backend = PyTorchBackend(config(model))

    async def body() -> None:
        await backend.close()
        with pytest.raises(EngineError, match="not been started"):
            await collect(backend, request(0))
        await backend.start()
        stream = asyncio.create_task(collect(backend, request(0, 500)))
        await asyncio.sleep(0.05)
        await backend.close()
        with pytest.raises(EngineError, match="closed"):
            await stream
        await backend.close()
        with pytest.raises(EngineError, match="closed"):
            await collect(backend, request(0))

    asyncio.run(asyncio.wait_for(body(), 30))


def test_close_frees_the_engine(model: Path) -> None:
    backend = PyTorchBackend(config(model))

    async def body() -> "weakref.ref[Engine]":
        await backend.start()
        await collect(backend, request(0))
        assert backend._engine is not None
        engine = weakref.ref(backend._engine)
        await backend.close()
        return engine

    engine = asyncio.run(asyncio.wait_for(body(), 30))
    assert engine() is None  # while the backend is still there: grading follows


def test_what_stops_the_start_is_raised_from_it(tmp_path: Path) -> None:
    backend = PyTorchBackend(config(tmp_path))
    with pytest.raises(ModelError, match=r"config\.json"):
        asyncio.run(backend.start())
    asyncio.run(asyncio.wait_for(backend.close(), 5))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"options": {"thread": "1"}}, UsageError, "did you mean threads"),
        (
            {"options": {"zzz": "1"}},
            UsageError,
            "known: cache_tokens, graphs, step_tokens, symmetric_memory, threads",
        ),
        ({"options": {"threads": "two"}}, UsageError, "threads=two"),
        ({"options": {"step_tokens": "0"}}, UsageError, "step_tokens=0"),
        ({"options": {"graphs": "2"}}, UsageError, "graphs=2"),
        ({"options": {"symmetric_memory": "no"}}, UsageError, "symmetric_memory=no"),
        ({"tensor_parallel": 2}, LaunchError, "--nproc_per_node=2"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_refused_at_once(
    tmp_path: Path, changes: dict[str, object], error: type, message: str
) -> None:
    with pytest.raises(error, match=message):
        PyTorchBackend(config(tmp_path, **changes))


@pytest.mark.slow
@pytest.mark.parametrize("chosen", [None, "77"])
def test_threads_wait_actively_for_a_short_time_only(chosen: str | None) -> None:
    """OpenMP reads it as torch is loaded; a user's own choice stays."""
    variables = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    ended = subprocess.run(
        [sys.executable, "-c", "import backends.pytorch"],
        cwd=Path(__file__).parents[2],
        env=variables
        | {"OMP_DISPLAY_ENV": "verbose"}
        | ({"GOMP_SPINCOUNT": chosen} if chosen else {}),
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"GOMP_SPINCOUNT = '{chosen or 10000}'" in ended.stderr


@pytest.mark.slow
def test_two_ranks_answer_as_one_and_end_together(
    torchrun: Torchrun, model: Path, tmp_path: Path
) -> None:
    ended = torchrun.run(2, WORKER, model, tmp_path, "answer", timeout=60)
    assert ended.returncode == 0, ended.stderr
    requests = [
        request(number, limit=9 + number, prompt_ids=tuple(range(number + 2)))
        for number in range(6)
    ]
    assert json.loads((tmp_path / "answers").read_text()) == [*expected(model, requests).values()]


def runs(pid: int) -> bool:
    """Whether a process runs; an ended one may still be a zombie."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.slow
@pytest.mark.parametrize(
    ("victim", "mode"),
    [
        (1, "busy"),
        (0, "busy"),
        (1, "wait"),
        (None, "busy"),
    ],
)
def test_a_rank_that_dies_ends_all(
    torchrun: Torchrun, model: Path, tmp_path: Path, victim: int | None, mode: str
) -> None:
    """Another rank names it. With None, torchrun dies."""
    agent = torchrun.start(2, WORKER, model, tmp_path, mode)
    files = [tmp_path / f"pid.{rank}" for rank in range(2)]
    until = time.monotonic() + 60
    while not all(file.exists() for file in files) and time.monotonic() < until:
        time.sleep(0.05)
    pids = [int(file.read_text()) for file in files]
    time.sleep(0.2)
    os.kill(agent.pid if victim is None else pids[victim], signal.SIGKILL)
    until = time.monotonic() + 30
    while any(map(runs, pids)) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(map(runs, pids))
    ended = torchrun.wait(30)
    assert ended.returncode != 0
    stderr = ended.stderr
    (message,) = (line for line in stderr.splitlines() if line.startswith("error: "))
    if victim is None:
        assert message == "error: torchrun has ended, so its ranks exit"
    else:
        assert "Signal 9" in stderr
        assert message.startswith(f"error: rank {victim} of 2 (process {pids[victim]} on ")
    assert "internal error" not in stderr
