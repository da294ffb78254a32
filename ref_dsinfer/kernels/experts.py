"""What surrounds the experts' products on NVIDIA GPUs; `moe.py` has the definitions in plain torch.

A rank that owns an eighth of the experts has about an eighth of the pairs of token and expert, how
many only the device knows. No kernel here reads or writes another rank's pairs: grids are sized for
the pairs that are likely, and programs take one row after another until none is left.

Shape letters: T tokens, A active experts a token, P pairs, E this rank's experts, D hidden,
I intermediate.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ref_dsinfer.kernels.block_fp8 import programs
from ref_dsinfer.rounding import ceil_div

SORT_BLOCK = 1024  # pairs a program looks at together
WIDE = 1024  # columns of a row that a program takes


@triton.jit(do_not_specialize=["pairs", "first"])
def _sort(
    experts_ptr,  # [pairs]
    tokens_ptr,  # [pairs]: the token of each local pair, sorted by expert
    places_ptr,  # [pairs]: where a pair lies in that order; -1 where its expert is elsewhere
    ends_ptr,  # [count]
    pairs,
    first,
    count,
    ACTIVE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A counting sort: each program places the pairs of one expert."""
    own = first + tl.program_id(0)
    before_P = tl.zeros((BLOCK,), tl.int32)
    for at in range(0, pairs, BLOCK):
        pair_P = at + tl.arange(0, BLOCK)
        expert_P = tl.load(experts_ptr + pair_P, mask=pair_P < pairs, other=-1)
        before_P += ((expert_P >= first) & (expert_P < own)).to(tl.int32)
    placed = tl.sum(before_P, 0)
    for at in range(0, pairs, BLOCK):
        pair_P = at + tl.arange(0, BLOCK)
        expert_P = tl.load(experts_ptr + pair_P, mask=pair_P < pairs, other=-1)
        mine_P = expert_P == own
        place_P = placed + tl.cumsum(mine_P.to(tl.int32), 0) - 1
        tl.store(places_ptr + pair_P, place_P, mask=mine_P)
        tl.store(tokens_ptr + place_P, pair_P // ACTIVE, mask=mine_P)
        placed += tl.sum(mine_P.to(tl.int32), 0)
        if own == first:
            elsewhere_P = (expert_P < first) | (expert_P >= first + count)
            tl.store(places_ptr + pair_P, -1, mask=elsewhere_P & (pair_P < pairs))
    tl.store(ends_ptr + tl.program_id(0), placed)


@triton.jit(do_not_specialize=["rows"])
def _gated(
    gate_up_ptr,  # [rows, 2 · INNER]
    inner_ptr,  # [rows, INNER]
    count_ptr,  # how many rows there are, where the host does not know it
    rows,
    INNER,
    COUNTED: tl.constexpr,  # count_ptr is read
    BLOCK: tl.constexpr,
):
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    real = column < INNER
    if COUNTED:
        rows = tl.load(count_ptr)
    for row in range(tl.program_id(0), rows, tl.num_programs(0)):
        row = tl.cast(row, tl.int64)
        gate = tl.load(gate_up_ptr + row * 2 * INNER + column, mask=real, other=0.0).to(tl.float32)
        up = tl.load(gate_up_ptr + row * 2 * INNER + INNER + column, mask=real, other=0.0)
        inner = gate / (1.0 + tl.exp(-gate)) * up.to(tl.float32)
        tl.store(inner_ptr + row * INNER + column, inner.to(inner_ptr.dtype.element_ty), mask=real)


@triton.jit
def _combine(
    y_ptr,  # [pairs, D]
    places_ptr,  # [T, ACTIVE]
    weights_ptr,  # [T, ACTIVE]
    shared_ptr,  # [T, D]
    out_ptr,  # [T, D]
    D,
    SHARED: tl.constexpr,  # shared_ptr is read
    ACTIVE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for number in range(ACTIVE):
        pair = token * ACTIVE + number
        place = tl.load(places_ptr + pair).to(tl.int64)
        y = tl.load(y_ptr + place * D + column, mask=(place >= 0) & (column < D), other=0.0)
        total += tl.load(weights_ptr + pair) * y.to(tl.float32)
    if SHARED:
        shared = tl.load(shared_ptr + token * D + column, mask=column < D, other=0.0)
        total += shared.to(tl.float32)
    tl.store(out_ptr + token * D + column, total, mask=column < D)


def sort(experts_TA: Tensor, first: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """`moe.plain_sort` in one kernel; tokens behind the last run are left uninitialised."""
    experts_TA = experts_TA.contiguous()
    pairs = experts_TA.numel()
    tokens_P = experts_TA.new_empty(pairs, dtype=torch.int32)
    places_TA = experts_TA.new_empty(experts_TA.shape, dtype=torch.int32)
    ends_E = experts_TA.new_empty(count, dtype=torch.int32)
    _sort[(count,)](
        *(experts_TA, tokens_P, places_TA, ends_E),
        *(pairs, first, count),
        ACTIVE=experts_TA.shape[1],
        BLOCK=SORT_BLOCK,
    )
    return tokens_P, places_TA, ends_E


def gated(gate_up: Tensor, ends_E: Tensor | None = None) -> Tensor:
    """`layers.plain_gated` in one kernel; rows behind the last run of `ends_E` are left
    uninitialised."""
    rows, inner = len(gate_up), gate_up.shape[1] // 2
    out = gate_up.new_empty(rows, inner)
    if rows:
        _gated[(programs(rows, ends_E), ceil_div(inner, WIDE))](
            *(gate_up, out, gate_up if ends_E is None else ends_E[-1:], rows, inner),
            COUNTED=ends_E is not None,
            BLOCK=WIDE,
        )
    return out


def combine(
    y_PD: Tensor, places_TA: Tensor, weights_TA: Tensor, shared_TD: Tensor | None = None
) -> Tensor:
    """`moe.plain_combine` in one kernel."""
    tokens, active = places_TA.shape
    width = y_PD.shape[1]
    out_TD = y_PD.new_empty(tokens, width, dtype=torch.float32)
    if tokens:
        _combine[(tokens, ceil_div(width, WIDE))](
            *(y_PD, places_TA, weights_TA.contiguous()),
            *(y_PD if shared_TD is None else shared_TD.contiguous(), out_TD, width),
            SHARED=shared_TD is not None,
            ACTIVE=active,
            BLOCK=WIDE,
        )
    return out_TD
