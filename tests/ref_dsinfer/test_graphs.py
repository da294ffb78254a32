"""Padded steps, run as for a CUDA graph but not captured, against plain ones."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from torch import Tensor

from errors import UsageError
from ref_dsinfer import runner
from ref_dsinfer.batch import Batch
from ref_dsinfer.engine import Engine
from ref_dsinfer.graphs import padded_sizes
from ref_dsinfer.options import EngineOptions
from tests.ref_dsinfer.conftest import written


@dataclass
class Found:
    """What an engine has answered, and how its model was called."""

    token_ids: dict[int, list[int]] = field(default_factory=dict)
    prefills: int = 0  # passes of the model or its MTP layer that had prompts as such
    decodes: int = 0  # other passes


def answers(model: Path, padded: bool, speculative: bool = False) -> Found:
    """Answers to requests that come and go, with a cache so small that some are preempted."""
    found = Found()
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
        engine.runner.fix_shapes(engine.scheduler.step_tokens, 5, 100)

    def counted(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(batch: Batch, *arguments: object) -> Tensor:
            found.prefills += bool(batch.prefills)
            found.decodes += not batch.prefills
            return method(batch, *arguments)

        return call

    for name in ("forward", "draft"):
        setattr(engine.runner.model, name, counted(getattr(engine.runner.model, name)))
    chance = random.Random(3)
    token_ids = found.token_ids
    step = 0
    while engine.busy or len(token_ids) < 12:
        if step % 4 == 0 and len(token_ids) < 12:
            prompt = tuple(
                chance.randrange(engine.config.vocab_size) for _ in range(chance.randint(1, 40))
            )
            engine.add(len(token_ids), prompt, chance.randint(1, 50))
            token_ids[len(token_ids)] = []
        for output in engine.step() if engine.busy else ():
            token_ids[output.id] += output.token_ids
        step += 1
    assert engine.scheduler.preempted
    assert bool(engine.verified) == speculative
    [pool] = engine.scheduler.pools
    assert pool.free == pool.blocks
    return found


def test_padded_steps_give_the_same_tokens(random_model: Path) -> None:
    padded, plain = answers(random_model, padded=True), answers(random_model, padded=False)
    assert padded.token_ids == plain.token_ids
    assert plain.prefills
    assert not padded.prefills


def test_padded_steps_draft_and_verify_the_same_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where long prompts are prefilled between them."""
    model = written(tmp_path, mtp=True)
    plain = answers(model, padded=False, speculative=True)
    padded = answers(model, padded=True, speculative=True)
    assert padded.token_ids == plain.token_ids == answers(model, padded=False).token_ids
    assert plain.prefills
    assert not padded.prefills
    monkeypatch.setattr(runner, "FIXED_CONTEXT", 20)
    both = answers(model, padded=True, speculative=True)
    assert both.token_ids == plain.token_ids
    assert 0 < both.prefills < plain.prefills
    assert both.decodes > plain.decodes


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
