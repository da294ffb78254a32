"""torch's symmetric memory for ranks on CPUs: real operators, called through torch's dispatcher,
with kernels that add up by gloo; buffers and their rendezvous are replaced."""

import inspect
from collections import Counter
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import torch.distributed._symmetric_memory as torch_symmetric
from torch import Tensor
from torch._C._distributed_c10d import _SymmetricMemory

from ref_dsinfer.parallel import Ranks
from ref_dsinfer.symmetric import SymmetricMemory

calls: Counter[str] = Counter()
_buffers: list[Tensor] = []
_library = torch.library.Library("symm_mem", "IMPL")
_real = {
    name: inspect.signature(getattr(torch_symmetric, name)) for name in ("empty", "rendezvous")
}


def provide(ranks: Ranks, multicast: bool) -> SymmetricMemory:
    """Give ranks on CPUs what those on GPUs have, with or without a switch that adds up."""

    def empty(*size: int, **options: Any) -> Tensor:
        _real["empty"].bind(*size, **options)
        _buffers.append(torch.empty(*size, **options))
        return _buffers[-1]

    def rendezvous(tensor: Tensor, group: str) -> SimpleNamespace:
        _real["rendezvous"].bind(tensor, group)
        assert group == dist.group.WORLD.group_name  # type: ignore[union-attr]
        assert hasattr(_SymmetricMemory, "multicast_ptr")
        return SimpleNamespace(multicast_ptr=int(multicast))

    with (
        mock.patch.object(torch_symmetric, "empty", empty),
        mock.patch.object(torch_symmetric, "rendezvous", rendezvous),
    ):
        ranks._init_symmetric()
    assert ranks._symmetric
    return ranks._symmetric


def _multimem(own: Tensor, operation: str, group: str) -> Tensor:
    calls["multimem"] += 1
    return _sum(own, operation)


def _one_shot(own: Tensor, operation: str, group: str) -> Tensor:
    calls["one_shot"] += 1
    return _sum(own.clone(), operation, own)


def _sum(target: Tensor, operation: str, own: Tensor | None = None) -> Tensor:
    own = target if own is None else own
    assert own.is_contiguous()
    assert own.dtype == torch.float32
    assert own.untyped_storage().data_ptr() == _buffers[-1].data_ptr()
    assert operation == "sum"
    dist.all_reduce(target)
    return target


_library.impl("multimem_all_reduce_", _multimem, "CPU")
_library.impl("one_shot_all_reduce", _one_shot, "CPU")
