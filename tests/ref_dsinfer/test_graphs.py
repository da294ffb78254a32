"""Padded decode steps, run as for a CUDA graph but not captured, against plain ones."""

import random
from pathlib import Path

import pytest

from errors import UsageError
from ref_dsinfer.engine import Engine
from ref_dsinfer.graphs import padded_sizes
from ref_dsinfer.options import EngineOptions
from tests.ref_dsinfer.conftest import written


def answers(model: Path, padded: bool, speculative: bool = False) -> dict[int, list[int]]:
    """Answers to requests that come and go, with a cache so small that some are preempted."""
    options = EngineOptions(
        device="cpu",
        dtype="float32",
        max_running=5,
        max_model_len=100,
        block_size=8,
        cache_tokens=200,
        threads=1,
        speculative=speculative,
    )
    engine = Engine(model, options)
    if padded:
        engine.runner.fix_shapes(5, 100)
    chance = random.Random(3)
    token_ids: dict[int, list[int]] = {}
    step = 0
    while engine.busy or len(token_ids) < 12:
        if step % 4 == 0 and len(token_ids) < 12:
            prompt = tuple(chance.randrange(96) for _ in range(chance.randint(1, 40)))
            engine.add(len(token_ids), prompt, chance.randint(1, 50))
            token_ids[len(token_ids)] = []
        for output in engine.step() if engine.busy else ():
            token_ids[output.id] += output.token_ids
        step += 1
    assert engine.scheduler.preempted
    assert bool(engine.verified) == speculative
    [pool] = engine.scheduler.pools
    assert pool.free == pool.blocks
    return token_ids


def test_padded_steps_give_the_same_tokens(random_model: Path) -> None:
    assert answers(random_model, padded=True) == answers(random_model, padded=False)


def test_padded_steps_draft_and_verify_the_same_tokens(tmp_path: Path) -> None:
    model = written(tmp_path, mtp=True)
    plain = answers(model, padded=False, speculative=True)
    assert answers(model, padded=True, speculative=True) == plain == answers(model, padded=False)


@pytest.mark.parametrize("most", [1, 3, 64, 100, 512, 700])
def test_every_batch_has_a_size_that_is_not_much_larger(most: int) -> None:
    sizes = padded_sizes(most)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == most
    for count in range(1, most + 1):
        size = next(size for size in sizes if size >= count)
        assert size <= max(2 * count - 1, 1) or size - count < 8


def test_fp8_arithmetic_needs_fp8_weights(random_model: Path) -> None:
    with pytest.raises(UsageError, match="needs block-fp8 weights"):
        Engine(random_model, EngineOptions("cpu", gemm="fp8"))
    with pytest.raises(UsageError, match="gemm 'int8'"):
        EngineOptions("cpu", gemm="int8")  # type: ignore[arg-type]  # refused at run time too
