"""Whole layers in Triton's interpreter (TRITON_INTERPRET=1) against their plain definitions, and how
many kernels a decode step launches.

    TRITON_INTERPRET=1 python -m tests.ref_dsinfer.kernel_layers
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime.interpreter import InterpretedFunction

from benchmarks.kernels import SMALL
from ref_dsinfer import fp8, kernels, rope
from ref_dsinfer.batch import Batch, Decodes
from ref_dsinfer.cache import PagedCache
from ref_dsinfer.model import Layer
from ref_dsinfer.parallel import RankInfo, Ranks

CPU = torch.device("cpu")
CONFIG = replace(SMALL, layers=2, experts=16, dense_intermediate=256)
TOKENS, BLOCK = 3, 16
# Operators that launch nothing: views, and memory that is not filled.
VIEWS = (
    "view _unsafe_view transpose expand unsqueeze squeeze slice select split split_with_sizes t"
    " permute as_strided detach alias view_as_complex view_as_real empty new_empty empty_like"
    " empty_strided unbind chunk is_same_size"
).split()
# The most that a layer may launch, as a rank that owns a part of each weight; without collectives.
MOST = {"dense": 22, "mixture": 30}


class Launches(TorchDispatchMode):
    """Counts what a GPU would launch: torch's operators and Triton's kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self._inside = False

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None):
        name = operator._schema.name.split("::")[1]
        if not self._inside and name not in VIEWS:
            self.found[name] += 1
        return operator(*args, **(kwargs or {}))

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count kernels, too, but not what the interpreter does inside them."""
        run = InterpretedFunction.run

        def counting(kernel: Any, *args: Any, **kwargs: Any) -> Any:
            self.found[kernel.fn.__name__] += 1
            self._inside = True
            try:
                return run(kernel, *args, **kwargs)
            finally:
                self._inside = False

        with mock.patch.object(InterpretedFunction, "run", counting), self:
            yield


def layer(number: int, ranks: Ranks) -> Layer:
    """A layer of random block-fp8 weights, and of as many experts as one of two ranks has."""
    built = Layer(CONFIG, number, torch.float32, ranks)
    for name, parameter in built.named_parameters():
        if parameter.dtype == fp8.E4M3:
            parameter.data.copy_(torch.randn(parameter.shape))
        elif "scale_inv" in name:
            parameter.data.fill_(0.05)
        else:
            parameter.data.copy_(torch.rand(parameter.shape))
    built.self_attn.prepare()
    return built


def ran(built: Layer, x: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """The layer's output and what it left in the cache."""
    cache = PagedCache(CONFIG, 8, BLOCK, torch.float32, CPU)
    torch.manual_seed(3)
    cache.blocks(0).normal_()
    cache.blocks(1).normal_()
    rotations = rope.table(CONFIG, 64)[batch.positions_T]
    return built(x, rotations, batch, cache), cache.blocks(built.self_attn.layer)


def main() -> None:
    """Compare and count; a mixture's rank owns half of the experts."""
    torch.manual_seed(0)
    ranks = Ranks(RankInfo(), CPU)
    tables = torch.tensor([[0, 1], [2, 3], [4, 5]])
    positions = torch.tensor([3, 17, 30])
    slots = tables[torch.arange(TOKENS), positions // BLOCK] * BLOCK + positions % BLOCK
    batch = Batch(positions, positions, slots, Decodes(tables, positions + 1), (), TOKENS)
    x = torch.randn(TOKENS, CONFIG.hidden)
    for number, (kind, most) in enumerate(MOST.items()):
        ranks.rank, ranks.world_size = 1, 2
        built = layer(number, ranks)
        ranks.world_size = 1
        launches = Launches()
        with launches.counted():
            found, cached = ran(built, x, batch)
        with mock.patch.object(kernels, "INTERPRETED", False):
            expected, expected_cached = ran(built, x, batch)
        torch.testing.assert_close(found, expected, rtol=5e-4, atol=5e-4 * expected.abs().max())
        torch.testing.assert_close(cached, expected_cached, rtol=5e-4, atol=5e-4)
        setup = launches.found.pop("normal_"), launches.found.pop("copy_", 0)
        count = launches.found.total()
        print(f"{kind}: {count} launches", dict(launches.found), setup)
        assert count <= most, f"a {kind} layer launches {count} kernels, more than {most}"


if __name__ == "__main__":
    main()
