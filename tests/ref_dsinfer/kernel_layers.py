"""Whole layers in Triton's interpreter (TRITON_INTERPRET=1) against their plain definitions.

TRITON_INTERPRET=1 python -m tests.ref_dsinfer.kernel_layers
"""

from dataclasses import replace
from unittest import mock

import torch

from benchmarks.kernels import SMALL
from ref_dsinfer import fp8_format, kernels, rope
from ref_dsinfer.batch import Batch, Decodes
from ref_dsinfer.cache import PagedCache
from ref_dsinfer.config import ModelConfig
from ref_dsinfer.model import Layer
from ref_dsinfer.parallel import RankInfo, Ranks

CPU = torch.device("cpu")
CONFIG = replace(SMALL, layers=2, experts=16, dense_intermediate=256, q_lora=128)
BLOCK = 16
TOLERANCE = 5e-4  # of the largest value


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
        if parameter.dtype == fp8_format.E4M3:
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
    x, part = torch.randn(2, 3, CONFIG.hidden)
    filled = torch.randn(6, BLOCK, CONFIG.latent_dim)
    for number in (0, 1):
        built = layer(CONFIG, number, torch.float32, world_size=2)
        fill(built)
        outputs = {}
        for interpreted in (False, True):
            cache = PagedCache(CONFIG, 6, BLOCK, torch.float32, CPU)
            cache.blocks(number).copy_(filled)
            with mock.patch.object(kernels, "INTERPRETED", interpreted):
                if interpreted:
                    built.self_attn.stack()
                    assert built.self_attn.q_kv_a_proj is not None
                else:
                    built.self_attn.prepare()
                outputs[interpreted] = (
                    *built(x, part, rotations, batch, cache),
                    cache.blocks(number),
                )
        for kernel, plain in zip(outputs[True], outputs[False], strict=True):
            error = (kernel - plain).abs().max() / plain.abs().max()
            assert error < TOLERANCE, f"layer {number}: {error:.1e}"


if __name__ == "__main__":
    torch.manual_seed(0)
    compare()
