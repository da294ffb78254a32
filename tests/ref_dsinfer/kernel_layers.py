"""Whole layers in Triton's interpreter (TRITON_INTERPRET=1) against their plain definitions, and
how many kernels a decode step launches.

    TRITON_INTERPRET=1 python -m tests.ref_dsinfer.kernel_layers
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime.interpreter import InterpretedFunction

from benchmarks.kernels import R1, RANKS, SMALL
from ref_dsinfer import fp8, kernels, rope
from ref_dsinfer.batch import Batch, Decodes
from ref_dsinfer.cache import PagedCache
from ref_dsinfer.config import ModelConfig
from ref_dsinfer.model import Layer
from ref_dsinfer.parallel import RankInfo, Ranks

CPU = torch.device("cpu")
CONFIG = replace(SMALL, layers=2, experts=16, dense_intermediate=256, q_lora=128)
BLOCK = 16
TOLERANCE = 5e-4  # of the largest value
# Operators that launch nothing: views, and memory that is not filled.
VIEWS = {
    *("view", "_unsafe_view", "transpose", "expand", "unsqueeze", "squeeze", "slice", "select"),
    *("split", "split_with_sizes", "t", "permute", "as_strided", "detach", "alias", "unbind"),
    *("view_as_real", "empty", "new_empty", "empty_like", "empty_strided"),
}
# The most that a layer of R1 launches in a decode step of a rank of eight, without collectives.
MOST = {"dense": 22, "mixture": 30}


class Launches(TorchDispatchMode):
    """Counts what a GPU would launch: torch's operators and, instead of running them, kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None):
        name = operator._schema.name.split("::")[1]
        if name not in VIEWS:
            self.found[name] += 1
        return operator(*args, **(kwargs or {}))

    @contextmanager
    def counted(self) -> Iterator[None]:
        def count(kernel: Any, *args: Any, **kwargs: Any) -> None:
            self.found[kernel.fn.__name__] += 1

        with mock.patch.object(InterpretedFunction, "run", count), self:
            yield


def layer(config: ModelConfig, number: int, dtype: torch.dtype, world_size: int) -> Layer:
    """A layer of which the last of so many ranks has its part; it runs alone."""
    ranks = Ranks(RankInfo(), CPU)
    ranks.rank, ranks.world_size = world_size - 1, world_size
    built = Layer(config, number, dtype, ranks)
    ranks.world_size = 1
    return built


def fill(built: Layer) -> None:
    """Random block-fp8 weights."""
    for name, parameter in built.named_parameters():
        if parameter.dtype == fp8.E4M3:
            parameter.data.copy_(torch.randn(parameter.shape))
        elif "scale_inv" in name:
            parameter.data.fill_(0.05)
        else:
            parameter.data.copy_(torch.rand(parameter.shape))


def compare() -> None:
    """Decodes through a dense layer, and a mixture of which this rank has half of the experts."""
    tables = torch.tensor([[0, 1], [2, 3], [4, 5]])
    positions = torch.tensor([3, 17, 30])
    slots = tables[torch.arange(3), positions // BLOCK] * BLOCK + positions % BLOCK
    batch = Batch(positions, positions, slots, Decodes(tables, positions + 1), (), 3)
    rotations = rope.table(CONFIG, 64)[positions]
    x = torch.randn(3, CONFIG.hidden)
    filled = torch.randn(6, BLOCK, CONFIG.latent_dim)
    for number in (0, 1):
        built = layer(CONFIG, number, torch.float32, world_size=2)
        fill(built)
        found = {}
        for interpreted in (False, True):
            cache = PagedCache(CONFIG, 6, BLOCK, torch.float32, CPU)
            cache.blocks(number).copy_(filled)
            with mock.patch.object(kernels, "INTERPRETED", interpreted):
                if interpreted:
                    built.self_attn.stack()
                    assert built.self_attn.q_kv_a_proj is not None
                else:
                    built.self_attn.prepare()
                y = built(x, rotations, batch, cache)
            found[interpreted] = y, cache.blocks(number)
        for kernel, plain in zip(found[True], found[False], strict=True):
            error = (kernel - plain).abs().max() / plain.abs().max()
            assert error < TOLERANCE, f"layer {number}: {error:.1e}"


def count(tokens: int) -> None:
    """Launches of a decode step through R1's layers, traced without memory."""
    with torch.device("meta"):
        ids = torch.empty(tokens, dtype=torch.int64)
        tables = torch.empty(tokens, 362, dtype=torch.int64)
        batch = Batch(ids, ids, ids, Decodes(tables, ids), (), tokens)
        rotations = torch.empty(tokens, R1.rope_dim // 2, dtype=torch.complex64)
        x = torch.empty(tokens, R1.hidden, dtype=torch.bfloat16)
        cache = PagedCache(R1, 100, 64, torch.bfloat16, torch.device("meta"))
        for number, (kind, most) in enumerate(MOST.items()):
            built = layer(R1, number, torch.bfloat16, RANKS)
            built.self_attn.prepare()
            if kind == "mixture":
                built.mlp.gate.weight.data = built.mlp.gate.weight.bfloat16()  # as `narrow` does
            launches = Launches()
            with launches.counted():
                built(x, rotations, batch, cache)
            total = launches.found.total()
            print(f"{kind} layer, {tokens} tokens: {total} launches,", dict(launches.found))
            assert total <= most, f"a {kind} layer launches {total} kernels, more than {most}"


if __name__ == "__main__":
    torch.manual_seed(0)
    compare()
    for tokens in (1, 64, 512):
        count(tokens)
