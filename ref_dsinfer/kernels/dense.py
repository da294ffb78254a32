"""Products of dense weights on NVIDIA GPUs, and what is done with their sums in the same kernel.

Where a weight has too few rows to keep a GPU busy, its columns are split into parts, one for each
program. The program that ends last adds up the parts, always in the same order. How a sum is split
depends on the weight's shape, not on how many rows x has (up to SPLIT_ROWS): the same call gives
the same bits.

Shape letters: T rows of x, A active experts a token, P pairs of token and expert, I in, O out.
"""

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from ref_dsinfer.gemm import Pairs
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
from ref_dsinfer.rounding import ceil_div

PROGRAMS = 66  # to launch at least: an H100's 132 processors read more than their share of memory
SPLIT_BLOCKS = 4  # columns / 128 that one part of a split sum has at least
SPLIT_ROWS = 256  # rows of x up to which the weight's shape decides how sums are split
SHORTEST = 32  # rows of x that a program takes at least, where there are more than SPLIT_ROWS
ARRIVALS = 8 * PROGRAMS  # tiles of split sums, at most: the rows are up to eight tiles


@triton.jit(do_not_specialize=["rows"])
def _product(
    x_ptr,  # [rows, IN]
    x_scale_ptr,  # [rows, IN / 128]
    w_ptr,  # [matrices, OUT, IN]
    w_scale_ptr,  # [matrices, OUT / 128, IN / 128]
    y_ptr,  # [rows, matrices · OUT], or [rows, OUT] if GATED
    parts_ptr,  # [SPLITS, rows, tiles · 128]
    arrivals_ptr,  # [programs of a part], zeros
    pairs_ptr,  # [P, OUT]
    places_ptr,  # [rows, ACTIVE]: of a row's pairs, −1 where a pair is left out
    weights_ptr,  # [rows, ACTIVE]
    rows,
    matrices,
    OUT,
    IN,
    BLOCK_T: tl.constexpr,
    SPLITS: tl.constexpr,
    GATED: tl.constexpr,
    ACTIVE: tl.constexpr,  # pairs that are added to each row
    W_SCALED: tl.constexpr,
    X_SCALED: tl.constexpr,
    EVEN: tl.constexpr,
):
    # Programs that share a tile of the weight run side by side: it is then read once.
    program, part = tl.program_id(0), tl.program_id(1)
    row_tiles = tl.cdiv(rows, BLOCK_T)
    tile = program // row_tiles
    row_T = program % row_tiles * BLOCK_T + tl.arange(0, BLOCK_T)
    real_T = row_T < rows
    in_blocks = tl.cdiv(IN, BLOCK)
    each = tl.cdiv(in_blocks, SPLITS)
    sum_TO = sums(
        *(x_ptr, x_scale_ptr, w_ptr, w_scale_ptr, tl.minimum(row_T, rows - 1), 0, tile),
        *(matrices, OUT, IN, part * each, tl.minimum(part * each + each, in_blocks)),
        *(BLOCK_T, GATED, W_SCALED, X_SCALED, EVEN),
    )
    row_T = row_T.to(tl.int64)
    if SPLITS > 1:
        wide = tl.num_programs(0) // row_tiles * BLOCK
        parts_TO = parts_ptr + row_T[:, None] * wide + (tile * BLOCK + tl.arange(0, BLOCK))[None, :]
        own_TO = parts_TO + part.to(tl.int64) * rows * wide
        tl.store(own_TO, sum_TO, mask=real_T[:, None])
        tl.debug_barrier()  # an arrival says that all threads' values are there
        if tl.atomic_add(arrivals_ptr + program, 1, sem="acq_rel") < SPLITS - 1:
            return
        tl.store(arrivals_ptr + program, 0)
        sum_TO = tl.zeros((BLOCK_T, BLOCK), tl.float32)
        for number in range(SPLITS):
            at_TO = parts_TO + tl.cast(number, tl.int64) * rows * wide
            # Not from this processor's own cache.
            sum_TO += tl.load(at_TO, mask=real_T[:, None], other=0.0, cache_modifier=".cg")

    if GATED:
        result_TO = activations(sum_TO, BLOCK_T)
        width = OUT
    else:
        result_TO = sum_TO
        width = matrices * OUT
    column_O, real_O = column(tile, OUT, GATED)
    real_TO = real_T[:, None] & real_O[None, :]
    for number in range(ACTIVE):
        place_T = tl.load(places_ptr + row_T * ACTIVE + number, mask=real_T, other=-1)
        weight_T = tl.load(weights_ptr + row_T * ACTIVE + number, mask=real_T, other=0.0)
        pairs_TO = pairs_ptr + place_T.to(tl.int64)[:, None] * width + column_O[None, :]
        pair_TO = tl.load(pairs_TO, mask=real_TO & (place_T >= 0)[:, None], other=0.0)
        result_TO += weight_T[:, None] * pair_TO.to(tl.float32)
    y_TO = y_ptr + row_T[:, None] * width + column_O[None, :]
    tl.store(y_TO, result_TO.to(y_ptr.dtype.element_ty), mask=real_TO)


def product(
    x_TI: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    x_scale: Tensor | None = None,
    dtype: torch.dtype | None = None,
    gated: bool = False,
    pairs: Pairs | None = None,
) -> Tensor:
    """x times a weight [..., out, in]: [T, all outs side by side] in `dtype`, or x's.

    `scale` is a block-fp8 weight's. With `x_scale`, x and it are what `quantise_rows` returns.
    `gated` and `pairs`: see `gemm.dense`.
    """
    assert weight.is_contiguous()
    x_TI = x_TI.contiguous()
    outs, columns = weight.shape[-2:]
    matrices = weight.numel() // (outs * columns)
    rows = len(x_TI)
    y_TO = x_TI.new_empty(rows, outs if gated else matrices * outs, dtype=dtype or x_TI.dtype)
    if not rows:
        return y_TO
    wide = tiles(weight, gated)
    most = most_rows(x_TI.itemsize, is_blackwell(x_TI.device))
    tall, splits = tiling(rows, wide, ceil_div(columns, FP8_BLOCK), most)
    programs = wide * ceil_div(rows, tall)
    parts = y_TO
    if splits > 1:
        parts = y_TO.new_empty(splits, rows, wide * FP8_BLOCK, dtype=torch.float32)
        assert programs <= ARRIVALS
    warps, stages = launch(tall, weight.itemsize, x_TI.itemsize, gated)
    _product[(programs, splits)](
        # a pointer that is not read may be any
        *(x_TI, x_TI if x_scale is None else x_scale),
        *(weight, weight if scale is None else scale, y_TO, parts),
        arrivals(x_TI.device) if splits > 1 else y_TO,
        *((y_TO, y_TO, y_TO) if pairs is None else pairs),
        *(rows, matrices, outs, columns),
        BLOCK_T=tall,
        SPLITS=splits,
        GATED=gated,
        ACTIVE=0 if pairs is None else pairs.places_TA.shape[1],
        W_SCALED=scale is not None,
        X_SCALED=x_scale is not None,
        EVEN=columns % FP8_BLOCK == 0,
        num_warps=warps,
        num_stages=stages,
    )
    return y_TO


@cache
def arrivals(device: torch.device) -> Tensor:
    """How many parts of each tile are there; zeros between any two kernels of a stream."""
    return torch.zeros(ARRIVALS, dtype=torch.int32, device=device)


def tiling(rows: int, wide: int, blocks: int, most: int) -> tuple[int, int]:
    """Rows of x that a program takes, `most` at most, and parts, none empty, that the sum over
    `blocks` of 128 columns is split into, where a weight has `wide` times 128 rows."""
    tall = tile_rows(rows, most)
    programs = wide
    if rows > SPLIT_ROWS:
        while tall > SHORTEST and wide * ceil_div(rows, tall) < PROGRAMS:
            tall //= 2
        programs *= ceil_div(rows, tall)
    parts = max(1, min(ceil_div(PROGRAMS, programs), blocks // SPLIT_BLOCKS))
    return tall, ceil_div(blocks, ceil_div(blocks, parts))
