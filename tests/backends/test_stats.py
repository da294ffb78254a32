"""What engines and servers tell of what they are doing; real ones are asked in other tests."""

import asyncio
import json
from pathlib import Path

import pytest

from backends.dialect import Dialect
from backends.sglang_server import SglangDialect
from backends.types import Stats
from backends.vllm_server import VllmDialect

TINY = Path(__file__).parents[2] / "data" / "tiny" / "model"
METRICS = """# HELP vllm:num_requests_running Number of requests in model execution batches.
vllm:num_requests_running{engine="0",model_name="m"} 5.0
vllm:num_requests_running{engine="1",model_name="m"} 6.0
vllm:num_requests_waiting{engine="0",model_name="m"} 1.0
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 9.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.75
vllm:num_preemptions_total{engine="0",model_name="m"} 2.0
vllm:num_preemptions_created{engine="0",model_name="m"} 1.8e+09
"""
LOADS = {
    "timestamp": "now",
    "loads": [
        {"dp_rank": 0, "num_running_reqs": 3, "num_waiting_reqs": 0, "token_usage": 0.5},
        {"dp_rank": 1, "num_running_reqs": 4, "num_waiting_reqs": 2, "token_usage": 0.0},
    ],
}


@pytest.mark.parametrize(
    ("dialect", "page", "stats"),
    [
        (VllmDialect(), METRICS, Stats(11, 1, 0.5, 2)),
        (VllmDialect(), "python_info 1.0\n", Stats()),
        (SglangDialect(str(TINY)), json.dumps(LOADS), Stats(7, 2, 0.25)),
    ],
)
def test_a_server_tells_of_all_its_engines(dialect: Dialect, page: str, stats: Stats) -> None:
    async def get(path: str) -> bytes:
        return page.encode()

    assert asyncio.run(dialect.stats(get)) == stats


def test_what_one_of_several_does_not_tell_is_not_known() -> None:
    parts = [Stats(1, 2, 0.5, 0), Stats(0, 4, 0.0, None), Stats(3, None, 0.25, 8)]
    assert Stats.total(parts) == Stats(4, None, 0.25, None)
    assert Stats.total(parts[:1]) == parts[0]
