"""SGLang's own arguments and faults."""

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import pytest

from backends import drive
from backends.types import Backend, EngineConfig, Request, Reuse
from errors import EngineError, LengthError
from tests.backends.echo_server import EchoServer
from tests.backends.engines import CONFIG, engine_processes, load

pytestmark = [pytest.mark.sglang, pytest.mark.timeout(1200)]


def command_line(config: EngineConfig) -> str:
    """The arguments that SGLang is started with."""
    from backends.sglang_args import arguments

    return " ".join(arguments(config, "cpu")) + " "


def test_our_options_become_sglang_s_own() -> None:
    line = command_line(
        EngineConfig(
            CONFIG.model,
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
        *(f"--model-path {CONFIG.model}", "--dtype float32", "--random-seed 9", "--device cpu"),
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
    assert "--max-total-tokens" not in line  # set by the memory fraction
    assert "--enable-torch-compile" not in line


def test_hosts_are_read_from_its_own_options() -> None:
    from backends.nodes import Span
    from backends.sglang_args import settings, span

    assert span(CONFIG) is None
    options = {"nnodes": "4", "node-rank": "3", "dist_init_addr": "[fd00::1]:20000"}
    config = replace(CONFIG, options=options)
    assert span(config) == Span(3, 4, "fd00::1", 20000)
    common = settings(command_line(config).split())
    assert common["nnodes"] == "4"
    assert "node-rank" not in common


def test_queries_share_no_prefix_cache_by_default() -> None:
    assert "--disable-radix-cache" in command_line(CONFIG)
    with_cache = replace(CONFIG, options={"disable-radix-cache": "false"})
    assert "--disable-radix-cache" not in command_line(with_cache)


def test_nothing_is_compiled_on_a_cpu_by_default(tmp_path: Path) -> None:
    from backends.sglang_args import environment

    assert environment(CONFIG, "cpu", tmp_path)["TORCH_COMPILE_DISABLE"] == "1"
    for config, device in ((CONFIG, "cuda"), (replace(CONFIG, compile=True), "cpu")):
        assert "TORCH_COMPILE_DISABLE" not in environment(config, device, tmp_path)
    assert "--enable-torch-compile" in command_line(replace(CONFIG, compile=True))


def test_hosts_reach_one_another_where_they_have_met(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from backends.sglang_args import environment

    monkeypatch.delenv("SGLANG_HOST_IP", raising=False)
    assert "SGLANG_HOST_IP" not in environment(CONFIG, "cpu", tmp_path)
    assert environment(CONFIG, "cpu", tmp_path, "10.77.0.2")["SGLANG_HOST_IP"] == "10.77.0.2"
    monkeypatch.setenv("SGLANG_HOST_IP", "192.0.2.7")
    assert environment(CONFIG, "cpu", tmp_path, "10.77.0.2")["SGLANG_HOST_IP"] == "192.0.2.7"


def test_processes_share_the_cores_of_a_cpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from backends.sglang_args import environment

    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {2, 3, 6, 7})
    config = replace(CONFIG, tensor_parallel=2)
    variables = environment(config, "cpu", tmp_path)
    assert (variables["SGLANG_CPU_OMP_THREADS_BIND"], variables["OMP_NUM_THREADS"]) == (
        "2,3|6,7",
        "2",
    )
    variables = environment(replace(config, data_parallel=3), "cpu", tmp_path)
    assert variables["SGLANG_CPU_OMP_THREADS_BIND"] == "2|3|6|7|2|3"
    assert "SGLANG_CPU_OMP_THREADS_BIND" not in environment(CONFIG, "cpu", tmp_path)


def test_a_length_that_the_model_does_not_have() -> None:
    with pytest.raises(LengthError, match="5000"):
        load("sglang", replace(CONFIG, max_model_len=5000))


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.parametrize("answers", [False, True])
def test_a_port_that_another_process_took(
    answers: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its choice and its use by SGLang, by a process that may be healthy, even SGLang."""

    async def start() -> str:
        other = EchoServer()
        other.answers_health = answers
        url = await other.start()
        monkeypatch.setattr("backends.sglang._free_port", lambda: int(url.rpartition(":")[2]))
        with pytest.raises(EngineError) as caught:
            async with drive.running(load("sglang", replace(CONFIG, log=tmp_path / "engine.log"))):
                pass
        await other.stop()
        return str(caught.value)

    message = asyncio.run(start())
    assert ("/server_info: HTTP 404" if answers else "found its port taken") in message
    assert not engine_processes()


@pytest.mark.slow
@pytest.mark.engine
def test_prefixes_that_were_reused_are_counted(tmp_path: Path) -> None:
    """With the prefix cache left on."""
    config = replace(CONFIG, log=tmp_path / "engine.log", options={"disable-radix-cache": "false"})
    prompt = (0, *range(10, 74))

    async def run(one: Backend) -> list[Reuse]:
        results = []
        async with drive.running(one):
            for number in range(2):
                await drive.collect(one, Request(number, prompt, 4, frozenset()))
                results.append(await one.reuse())
        return results

    first, second = asyncio.run(run(load("sglang", config)))
    assert first.enabled
    assert second.largest is not None
    assert first.largest is not None
    assert first.largest < 8  # of the probe's, at most
    assert second.largest >= 60
    log = tmp_path / "engine.log"
    assert log.stat().st_mode & 0o77 == 0
    assert "'api_key': '-'" in log.read_text()
