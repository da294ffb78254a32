"""The size of the cache, and that nothing else grows."""

import random
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from errors import UsageError
from ref_dsinfer import cache
from ref_dsinfer.cache import block_count
from ref_dsinfer.config import ModelConfig
from ref_dsinfer.engine import Engine
from ref_dsinfer.options import EngineOptions
from ref_dsinfer.parallel import RankInfo, Ranks
from tests.effort import cases

LONGEST, BLOCK = 1000, 64  # tokens
STEPS = cases(3_000, 10_000)
GROWTH = 8 << 20  # bytes that an allocator may keep


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> int:
    """Replaces the number of free bytes."""
    monkeypatch.setattr(cache, "free_memory", lambda ranks: 3 << 30)
    return 3 << 30


def blocks(config: ModelConfig, sequences: int, longest: int = LONGEST) -> int:
    ranks = Ranks(RankInfo(), torch.device("cpu"))
    return block_count(config, torch.bfloat16, ranks, longest, sequences, BLOCK, None)


def test_the_cache_takes_what_the_weights_leave(random_model: Path, free: int) -> None:
    config = replace(ModelConfig.read(random_model), kv_lora=512, rope_dim=64, layers=61)
    assert config.token_bytes(2) == 70_272  # R1's
    fit = free / 70_272
    assert 0.95 * fit - BLOCK <= blocks(config, 10_000) * BLOCK <= fit


def test_no_more_than_the_running_answers_can_fill(random_model: Path, free: int) -> None:
    assert blocks(ModelConfig.read(random_model), 3) == 3 * 16  # of 64 tokens: 1000 take 16


def test_less_than_one_request_is_refused(random_model: Path, free: int) -> None:
    with pytest.raises(UsageError, match="one request may need 100000000"):
        blocks(ModelConfig.read(random_model), 3, longest=100_000_000)


@pytest.mark.slow
def test_thousands_of_steps_take_no_more_memory_than_the_first(random_model: Path) -> None:
    """Arrivals, ends, aborts and preemptions all the time."""
    chance = random.Random(0)
    engine = Engine(
        random_model,
        EngineOptions(
            *("cpu", "float32"),
            max_model_len=120,
            max_running=4,
            threads=1,
            block_size=8,
            cache_tokens=200,
        ),
    )
    process = psutil.Process()
    used: list[int] = []
    open_: set[int] = set()
    number = 0
    for step in range(STEPS):
        while len(open_) < 5:
            ids = tuple(chance.randrange(96) for _ in range(chance.randint(1, 60)))
            engine.add(number, ids, chance.randint(1, 60))
            open_.add(number)
            number += 1
        if chance.random() < 0.01:
            engine.abort(gone := chance.choice(sorted(open_)))
            open_.remove(gone)
        open_ -= {output.id for output in engine.step() if output.finish}
        if step % 100 == 0:
            used.append(process.memory_info().rss)
    assert engine.scheduler.preempted > 50
    assert max(used) < max(used[:20]) + GROWTH
    for gone in open_:
        engine.abort(gone)
    assert not engine._sequences
    assert all(pool.free == pool.blocks for pool in engine.scheduler.pools)
