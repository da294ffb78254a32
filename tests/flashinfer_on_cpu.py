"""flashinfer's attention on a CPU, where its kernels can't run: what they compute, by torch.

`Native` takes the place of its compiled module below its own Python, if the package is there, or
below `Wrapper`, which takes the place of that as far as this project uses it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

SMS = 132  # processors of an H100
SHARED_MEMORY = (233472, 232448)  # bytes, of one of them, and of a program at most


class Native:
    """The compiled module: it reads what `plan` has left in the workspace on the device, so that
    a graph which has recorded `run` follows a further plan."""

    def plan(
        self,
        floats: Tensor,
        workspace: Tensor,
        pinned: Tensor,
        queries: Tensor,
        pages: Tensor,
        lengths: Tensor,
        heads: int,
        width: int,
        causal: bool,
    ) -> list[int]:
        """What a launch depends on, as a graph captures it: requests, and processors for each tile
        of queries."""
        mean = int(queries[-1]) * heads // len(lengths)
        info = [len(lengths), 2 if mean > 64 else 1]
        assert mean >= heads, "a tile of 64 queries may end within a token's heads"
        plan = torch.cat([torch.tensor(info, dtype=torch.int32), queries, pages, lengths])
        workspace.view(torch.int32)[: len(plan)] = plan
        return info

    def run(
        self,
        floats: Tensor,
        workspace: Tensor,
        info: list[int],
        q_nope: Tensor,
        q_pe: Tensor,
        ckv: Tensor,
        kpe: Tensor,
        table: Tensor,
        out: Tensor,
        lse: Tensor | None,
        mask_mode: int,
        heads: int,
        page_size: int,
        scale: float,
        *others: Any,
    ) -> None:
        """Scores of all tokens in the cache, of which a query sees its request's pages, up to as
        many tokens as it has, less the queries behind it."""
        count = info[0]
        assert q_nope.shape[1] == heads
        assert ckv.shape[1] == page_size
        assert mask_mode == 1, "causal"
        sizes = [2, count + 1, count + 1, count]
        plan = workspace.view(torch.int32)[: sum(sizes)].long()
        launch, queries, pages, lengths = plan.split(sizes)
        # Where in its request each page is; one request more has what is not in use.
        entries = torch.arange(len(table))
        owners = torch.searchsorted(pages, entries, right=True) - 1
        places = torch.full((count + 1, len(ckv)), -1)
        used = entries < pages[-1]
        index = (owners, table.long().where(used, 0))
        places = places.index_put(index, (entries - pages[owners]).where(used, -1))
        rows = torch.arange(len(q_nope))
        requests = torch.searchsorted(queries, rows, right=True) - 1
        seen = lengths[requests] - (queries[requests + 1] - 1 - rows)
        at = places[requests][..., None] * page_size + torch.arange(page_size)
        visible = (at >= 0) & (at < seen[:, None, None])
        keys = torch.cat([ckv, kpe], dim=-1).flatten(0, 1).float()
        q = torch.cat([q_nope, q_pe], dim=-1).float()
        scores = (q @ keys.T * scale).masked_fill(~visible.flatten(1)[:, None], -torch.inf)
        values = scores.softmax(-1) @ ckv.flatten(0, 1).float()
        # A graph launches what it has captured, whatever is planned.
        same = (launch == torch.tensor(info)).all()
        out.copy_(values.where(same, torch.nan))


@dataclass(frozen=True)
class Metadata:
    """In the place of `MLAPlanMetadata`."""

    qo_indptr: Tensor
    kv_indptr: Tensor
    kv_indices: Tensor
    kv_len_arr: Tensor

    @classmethod
    def csr(
        cls, qo_indptr: Tensor, kv_indptr: Tensor, kv_indices: Tensor, kv_len_arr: Tensor
    ) -> "Metadata":
        return cls(qo_indptr, kv_indptr, kv_indices, kv_len_arr)


class Wrapper:
    """In the place of `BatchMLAPagedAttentionWrapper`."""

    def __init__(
        self,
        float_workspace_buffer: Tensor,
        use_cuda_graph: bool = False,
        qo_indptr: Tensor | None = None,
        kv_indptr: Tensor | None = None,
        kv_indices: Tensor | None = None,
        kv_len_arr: Tensor | None = None,
        backend: str = "auto",
    ) -> None:
        self._native, self._fixed = Native(), use_cuda_graph
        self._workspace = torch.zeros(8 << 20, dtype=torch.uint8)
        self._buffers = (qo_indptr, kv_indptr, kv_len_arr)
        self._table = kv_indices

    def plan(
        self,
        *,
        metadata: Metadata,
        num_heads: int,
        head_dim_ckv: int,
        head_dim_kpe: int,
        page_size: int,
        causal: bool,
        sm_scale: float,
        q_data_type: torch.dtype,
        kv_data_type: torch.dtype,
    ) -> None:
        queries, pages, lengths = metadata.qo_indptr, metadata.kv_indptr, metadata.kv_len_arr
        for one in (queries, pages, metadata.kv_indices, lengths):
            assert one.dtype == torch.int32
            assert one.is_contiguous()
        for indptr in (queries, pages):
            assert indptr[0] == 0
            assert (indptr.diff() >= 0).all()
        assert len(queries) == len(pages) == len(lengths) + 1
        assert torch.equal(pages.diff(), -(-lengths // page_size))
        table = metadata.kv_indices
        assert len(table) == pages[-1]
        self._dtypes = (q_data_type, kv_data_type)
        self._widths = (head_dim_ckv, head_dim_kpe)
        if self._fixed:
            for buffer, given in zip(self._buffers, (queries, pages, lengths), strict=True):
                assert buffer is not None
                buffer.copy_(given)
            assert self._table is not None
            self._table[: len(table)] = table
        else:
            self._table = table
        self._info = self._native.plan(
            *(self._workspace, self._workspace, self._workspace, queries, pages, lengths),
            heads=num_heads,
            width=head_dim_ckv,
            causal=causal,
        )
        self._numbers = (int(causal), num_heads, page_size, sm_scale)

    def run(self, *, query: Tensor, kv_cache: Tensor) -> Tensor:
        assert (query.dtype, kv_cache.dtype) == self._dtypes
        assert self._table is not None
        out = torch.empty_like(query[..., : self._widths[0]])
        self._native.run(
            *(self._workspace, self._workspace, self._info),
            *query.split(self._widths, -1),
            *kv_cache.split(self._widths, -1),
            *(self._table, out, None, *self._numbers),
        )
        return out


def stand_ins() -> dict[str, ModuleType]:
    """For `sys.modules`."""
    contents: dict[str, dict[str, Any]] = {
        "flashinfer": {"__version__": "0"},
        "flashinfer.utils": {"is_sm90a_supported": lambda device: True},
        "flashinfer.mla": {"BatchMLAPagedAttentionWrapper": Wrapper, "MLAPlanMetadata": Metadata},
    }
    modules = {name: ModuleType(name) for name in contents}
    for name, module in modules.items():
        vars(module).update(contents[name] | {"__spec__": ModuleSpec(name, None)})
    return modules


def replace_below_the_package(replace: Callable[[Any, str, Any], None], native: Native) -> None:
    """What the package's Python asks of CUDA is answered as on an H100."""
    from flashinfer import utils
    from flashinfer.mla._batch_mla import _wrapper
    from flashinfer.mla._batch_mla._backends import _fa_common, fa2_backend, fa3_backend

    for module in (utils, _wrapper, _fa_common):
        replace(module, "get_compute_capability", lambda device: (9, 0))
    for module in (utils, _fa_common):
        replace(module, "is_sm90a_supported", lambda device: True)
    replace(_fa_common, "get_device_sm_count", lambda device: SMS)
    replace(_fa_common, "_get_fa_shared_memory_limits", lambda device: SHARED_MEMORY)
    for module in (fa2_backend, fa3_backend):
        replace(module, "get_batch_mla_module", lambda *shape: native)
    replace(torch, "empty", partial(_unpinned, torch.empty))


def _unpinned(empty: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    """Memory can't be pinned without CUDA."""
    return empty(*args, **kwargs | {"pin_memory": False})
