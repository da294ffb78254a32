"""Answers of an engine whose steps run as they come, at padded sizes, or as CUDA graphs."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ref_dsinfer.batch import Batch
from ref_dsinfer.engine import Engine
from ref_dsinfer.kernels import Kernels
from ref_dsinfer.kernels.flashinfer_mla import FlashInfer
from ref_dsinfer.options import EngineOptions

Kind = Literal["plain", "padded", "graphs"]


@dataclass
class Found:
    """What an engine has answered, and how its model was called."""

    token_ids: dict[int, list[int]] = field(default_factory=dict)
    # Passes of the model or its MTP layer that were not replayed: with prompts as such, and others.
    prefills: int = 0
    decodes: int = 0


def answers(
    model: Path,
    device: str = "cpu",
    kind: Kind = "plain",
    speculative: bool = False,
    in_columns: bool = True,
    kernels: Kernels = "auto",
    dtype: str = "float32",
) -> Found:
    """Answers to requests that come and go, with a cache so small that some are preempted.

    `in_columns`: as ever, where there are no drafts; else sequences decode one by one.
    """
    found = Found()
    options = EngineOptions(
        device=device,
        dtype=dtype,
        max_running=5,
        max_model_len=100,
        block_size=8,
        cache_tokens=200,
        step_tokens=64,
        threads=1,
        graphs=kind == "graphs",
        speculative=speculative,
        kernels="auto" if device == "cpu" else kernels,  # where only a stand-in runs
    )
    engine = Engine(model, options)
    if device == "cpu" and kernels == "flashinfer":
        shape = (engine.config, engine.config.heads, options.block_size, torch.float32)
        engine.runner.library = FlashInfer(*shape, torch.device("cpu"))
    engine.in_columns &= in_columns
    if kind == "padded":
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
    engine.close()
    return found
