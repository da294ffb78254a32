"""vLLM's own arguments, and failing starts that only vLLM has."""

import asyncio
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from backends.types import EngineConfig
from errors import LaunchError, UsageError
from tests.backends.engines import CONFIG, load

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1200)]


def test_our_options_become_vllm_s_own(tmp_path: Path) -> None:
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


def test_queries_share_no_prefix_cache_by_default() -> None:
    from backends.vllm import engine_args

    assert engine_args(CONFIG).enable_prefix_caching is False


def test_hosts_are_read_from_its_own_options() -> None:
    from backends.nodes import Span
    from backends.vllm import engine_args, span

    def hosts(**options: str) -> Span | None:
        return span(engine_args(replace(CONFIG, data_parallel=4, options=options)))

    assert hosts() is None
    assert hosts(data_parallel_size_local="4", data_parallel_address="a") is None
    workers = {"nnodes": "4", "node_rank": "3", "master_addr": "10.0.0.1"}
    assert hosts(**workers) == Span(3, 4, "10.0.0.1", 29501)
    engines = {
        "data_parallel_size_local": "2",
        "data_parallel_start_rank": "2",
        "data_parallel_address": "first",
        "data_parallel_rpc_port": "13345",
    }
    assert hosts(**engines) == Span(1, 2, "first", 13345)


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        options = {
            "data_parallel_size_local": "1",
            "data_parallel_address": "127.0.0.1",
            "data_parallel_rpc_port": str(listener.getsockname()[1] + 1),
        }
        config = replace(CONFIG, data_parallel=2, options=options, log=tmp_path / "engine.log")
        with pytest.raises(LaunchError, match=r"port \d+: .*address.*in use"):
            asyncio.run(load("vllm", config).start())


@pytest.mark.parametrize(
    ("join", "options", "message"),
    [
        (True, {}, "name no other host"),
        (True, {"nnodes": "2"}, "make this the first host"),
        (False, {"nnodes": "2", "node_rank": "1"}, "number 1: add --join"),
    ],
)
def test_join_is_for_hosts_after_the_first(
    join: bool, options: dict[str, str], message: str
) -> None:
    config = replace(CONFIG, tensor_parallel=2, join=join, options=options)
    with pytest.raises(UsageError, match=message):
        load("vllm", config)
