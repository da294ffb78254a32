"""Products of experts on NVIDIA GPUs: each run of rows times its own matrices of a stack."""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ref_dsinfer.kernels.block_fp8 import (
    BLOCK,
    activations,
    column,
    launch,
    most_rows,
    sums,
    tile_rows,
    tiles,
)
from ref_dsinfer.kernels.devices import is_blackwell
from ref_dsinfer.keys import FP8_BLOCK


@triton.jit(do_not_specialize=["rows"])
def _product(
    x_ptr,  # [tokens, IN]
    x_scale_ptr,  # [tokens, IN / 128]
    w_ptr,  # [groups, matrices, OUT, IN]
    w_scale_ptr,  # [groups, matrices, OUT / 128, IN / 128]
    y_ptr,  # [rows, matrices · OUT], or [rows, OUT] if GATED
    ends_ptr,  # [groups]
    tokens_ptr,  # [rows]: which row of x each row of y is made of
    groups,
    wide,  # tiles of a group's matrices
    matrices,
    OUT,
    IN,
    BLOCK_T: tl.constexpr,
    GROUPS: tl.constexpr,  # a power of 2, at least `groups`
    STRIDED: tl.constexpr,  # programs take one tile after another, since they may be too few
    GATHERED: tl.constexpr,
    GATED: tl.constexpr,
    W_SCALED: tl.constexpr,
    X_SCALED: tl.constexpr,
    EVEN: tl.constexpr,
):
    # Tiles of rows, group after group; how many there are, only the device knows.
    numbers = tl.arange(0, GROUPS)
    inside = numbers < groups
    ends = tl.load(ends_ptr + numbers, mask=inside, other=0)
    starts = tl.load(ends_ptr + numbers - 1, mask=inside & (numbers > 0), other=0)
    row_tiles = tl.where(inside, tl.cdiv(ends - starts, BLOCK_T), 0)
    upto = tl.cumsum(row_tiles, 0)
    total = tl.sum(row_tiles, 0) * wide
    program = tl.program_id(0)
    if STRIDED:  # takes registers
        for work in range(program, total, tl.num_programs(0)):
            _tile(
                *(x_ptr, x_scale_ptr, w_ptr, w_scale_ptr, y_ptr, tokens_ptr),
                *(work, numbers, starts, ends, row_tiles, upto, wide, matrices, OUT, IN),
                *(BLOCK_T, GATHERED, GATED, W_SCALED, X_SCALED, EVEN),
            )
    elif program < total:
        _tile(
            *(x_ptr, x_scale_ptr, w_ptr, w_scale_ptr, y_ptr, tokens_ptr),
            *(program, numbers, starts, ends, row_tiles, upto, wide, matrices, OUT, IN),
            *(BLOCK_T, GATHERED, GATED, W_SCALED, X_SCALED, EVEN),
        )


@triton.jit
def _tile(
    x_ptr,
    x_scale_ptr,
    w_ptr,
    w_scale_ptr,
    y_ptr,
    tokens_ptr,
    work,  # a tile of outs, and which tile of rows
    numbers,  # [GROUPS], as starts and ends of runs, their tiles, and these added up
    starts,
    ends,
    row_tiles,
    upto,
    wide,
    matrices,
    OUT,
    IN,
    BLOCK_T: tl.constexpr,
    GATHERED: tl.constexpr,
    GATED: tl.constexpr,
    W_SCALED: tl.constexpr,
    X_SCALED: tl.constexpr,
    EVEN: tl.constexpr,
):
    """BLOCK_T rows, or fewer up to the end of the group that they fall to, of a tile of outs."""
    row_tile, tile = work // wide, work % wide
    group = tl.sum((upto <= row_tile).to(tl.int32), 0)
    mine = numbers == group
    before = tl.sum(tl.where(mine, upto - row_tiles, 0), 0)
    first = tl.sum(tl.where(mine, starts, 0), 0) + (row_tile - before) * BLOCK_T
    last = tl.sum(tl.where(mine, ends, 0), 0)
    row_T = first + tl.arange(0, BLOCK_T)
    read_T = tl.minimum(row_T, last - 1)
    if GATHERED:
        read_T = tl.load(tokens_ptr + read_T)
    sum_TO = sums(
        *(x_ptr, x_scale_ptr, w_ptr, w_scale_ptr, read_T, group, tile),
        *(matrices, OUT, IN, 0, tl.cdiv(IN, BLOCK)),
        *(BLOCK_T, GATED, W_SCALED, X_SCALED, EVEN),
    )
    if GATED:
        result_TO = activations(sum_TO, BLOCK_T)
        width = OUT
    else:
        result_TO = sum_TO
        width = matrices * OUT
    column_O, real_O = column(tile, OUT, GATED)
    y_TO = y_ptr + row_T.to(tl.int64)[:, None] * width + column_O[None, :]
    stored = (row_T < last)[:, None] & real_O[None, :]
    tl.store(y_TO, result_TO.to(y_ptr.dtype.element_ty), mask=stored)


def product(
    x_TI: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    ends_E: Tensor,
    tokens_P: Tensor | None = None,
    x_scale: Tensor | None = None,
    dtype: torch.dtype | None = None,
    gated: bool = False,
    expected: int | None = None,
) -> Tensor:
    """Each run of rows times its own matrices of a stack [E, ..., out, in]: [P, all outs side by
    side] in `dtype`, or x's; rows behind the last run are left uninitialised.

    The arguments are those of `gemm.grouped`, but with `x_scale`, x and it are what `quantise_rows`
    returns. Tiles are made for the `expected` rows, and more rows take longer.
    """
    assert weight.is_contiguous()
    x_TI = x_TI.contiguous()
    groups = len(weight)
    outs, columns = weight.shape[-2:]
    matrices = weight.numel() // (groups * outs * columns)
    rows = len(x_TI) if tokens_P is None else len(tokens_P)
    y_PO = x_TI.new_empty(rows, outs if gated else matrices * outs, dtype=dtype or x_TI.dtype)
    if not rows:
        return y_PO
    wide = tiles(weight[0], gated)
    expected = rows if expected is None else expected
    most = most_rows(x_TI.itemsize, is_blackwell(x_TI.device))
    tall = group_tile_rows(expected, groups, most)
    row_tiles = min((expected if strided(tall) else rows) // tall + groups, rows)
    warps, stages = launch(tall, weight.itemsize, x_TI.itemsize, gated)
    _product[(wide * row_tiles,)](
        # a pointer that is not read may be any
        *(x_TI, x_TI if x_scale is None else x_scale),
        *(weight, weight if scale is None else scale),
        *(y_PO, ends_E, x_TI if tokens_P is None else tokens_P),
        *(groups, wide, matrices, outs, columns),
        BLOCK_T=tall,
        GROUPS=triton.next_power_of_2(groups),
        STRIDED=strided(tall),
        GATHERED=tokens_P is not None,
        GATED=gated,
        W_SCALED=scale is not None,
        X_SCALED=x_scale is not None,
        EVEN=columns % FP8_BLOCK == 0,
        num_warps=warps,
        num_stages=stages,
    )
    return y_PO


def strided(tall: int) -> bool:
    """Whether programs for groups are as many as likely tiles, and loop. Three programs of 16 rows
    fit a processor only without a loop, and few rows leave few programs without a tile."""
    return tall > 16


def group_tile_rows(rows: int, groups: int, most: int) -> int:
    """Rows of x a program takes where `rows` fall to `groups` by chance: most groups fit one tile.

    A group of m rows on average has seldom more than m + 2 √m.
    """
    mean = rows / groups
    return tile_rows(math.ceil(mean + 2 * math.sqrt(mean)), most)
