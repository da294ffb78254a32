"""Matrix products on NVIDIA GPUs, dense and grouped, over weights that stay block-fp8 in memory.

`gemm.py` has their definition in plain torch. Decoding reads every weight once for few rows, so it
is memory-bound: a program owns 128 rows of a weight, streams 128 columns at a time through
registers, and multiplies them by its rows of x. The weight is the left operand (y is computed
transposed), since tensor cores want 64 rows there and few on the right.

Sums are kept in fp32. Each block of 128 columns is a product of its own, to which the block's scale
is applied; that is also why fp8 products stay accurate, whose sums inside a tensor core have 14
bits. Nothing is tuned at run time, and how a sum is split depends on the weight's shape, not on how
many rows x has (up to SPLIT_ROWS): the same call gives the same bits.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ref_dsinfer.fp8_format import E4M3, LARGEST, SMALLEST_AMAX
from ref_dsinfer.kernels.devices import is_blackwell
from ref_dsinfer.keys import FP8_BLOCK
from ref_dsinfer.rounding import ceil_div

BLOCK = tl.constexpr(FP8_BLOCK)
PROGRAMS = 264  # to launch at least: two for each of an H100's 132 processors
ROW_PROGRAMS = 512  # that take one row after another, to launch at most
SPLIT_BLOCKS = 4  # columns / 128 that one part of a split sum has at least
SPLIT_ROWS = 256  # rows of x up to which sums are split: beyond, there are programs enough
STAGE_BYTES = 192 * 1024  # of shared memory, for what is loaded ahead; an H100 has 227 KiB


@triton.jit
def _exact(w, dtype: tl.constexpr):
    """w in a dtype that holds its values.

    To bf16 by way of fp16 and fp32: Triton's own conversion compiles to F2F.BF16.F16, which runs at
    a fraction of the rate of the two instructions that take its place.
    """
    if w.dtype == tl.float8e4nv and dtype == tl.bfloat16:
        w = w.to(tl.float16).to(tl.float32)
    return w.to(dtype)


@triton.jit(do_not_specialize=["rows"])
def _product(
    x_ptr,  # [tokens, IN]
    x_scale_ptr,  # [tokens, IN / 128]
    w_ptr,  # [groups, matrices, OUT, IN]
    w_scale_ptr,  # [groups, matrices, OUT / 128, IN / 128]
    y_ptr,  # [SPLITS, rows, matrices · OUT]
    ends_ptr,  # [groups]
    tokens_ptr,  # [rows]: which row of x each row of y is made of
    rows,
    groups,
    matrices,
    OUT,
    IN,
    BLOCK_T: tl.constexpr,
    SPLITS: tl.constexpr,
    GROUPS: tl.constexpr,  # a power of 2, at least `groups`; 0: one group of all rows
    STRIDED: tl.constexpr,  # programs take one tile after another, since they may be too few
    GATHERED: tl.constexpr,
    W_SCALED: tl.constexpr,
    X_SCALED: tl.constexpr,
    EVEN: tl.constexpr,  # IN is a multiple of 128
):
    out_tiles = matrices * tl.cdiv(OUT, BLOCK)
    program = tl.program_id(0)
    if GROUPS:
        # Tiles of rows, group after group; how many there are, only the device knows.
        numbers = tl.arange(0, GROUPS)
        inside = numbers < groups
        ends = tl.load(ends_ptr + numbers, mask=inside, other=0)
        starts = tl.load(ends_ptr + numbers - 1, mask=inside & (numbers > 0), other=0)
        tiles = tl.where(inside, tl.cdiv(ends - starts, BLOCK_T), 0)
        upto = tl.cumsum(tiles, 0)
        total = tl.sum(tiles, 0) * out_tiles
        if STRIDED:  # takes registers
            for work in range(program, total, tl.num_programs(0)):
                _group_tile(
                    *(x_ptr, x_scale_ptr, w_ptr, w_scale_ptr, y_ptr, tokens_ptr),
                    *(work, numbers, starts, ends, tiles, upto, rows, matrices, OUT, IN),
                    *(BLOCK_T, SPLITS, GATHERED, W_SCALED, X_SCALED, EVEN),
                )
        elif program < total:
            _group_tile(
                *(x_ptr, x_scale_ptr, w_ptr, w_scale_ptr, y_ptr, tokens_ptr),
                *(program, numbers, starts, ends, tiles, upto, rows, matrices, OUT, IN),
                *(BLOCK_T, SPLITS, GATHERED, W_SCALED, X_SCALED, EVEN),
            )
    else:
        # Programs that share a tile of the weight run side by side: it is then read once.
        row_tiles = tl.cdiv(rows, BLOCK_T)
        first = (program % row_tiles) * BLOCK_T
        _tile(
            *(x_ptr, x_scale_ptr, w_ptr, w_scale_ptr, y_ptr, tokens_ptr),
            *(0, first, rows, program // row_tiles, rows, matrices, OUT, IN),
            *(BLOCK_T, SPLITS, GATHERED, W_SCALED, X_SCALED, EVEN),
        )


@triton.jit
def _group_tile(
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
    tiles,
    upto,
    rows,
    matrices,
    OUT,
    IN,
    BLOCK_T: tl.constexpr,
    SPLITS: tl.constexpr,
    GATHERED: tl.constexpr,
    W_SCALED: tl.constexpr,
    X_SCALED: tl.constexpr,
    EVEN: tl.constexpr,
):
    """The tile of the group that it falls to."""
    out_tiles = matrices * tl.cdiv(OUT, BLOCK)
    row_tile = work // out_tiles
    group = tl.sum((upto <= row_tile).to(tl.int32), 0)
    mine = numbers == group
    before = tl.sum(tl.where(mine, upto - tiles, 0), 0)
    first = tl.sum(tl.where(mine, starts, 0), 0) + (row_tile - before) * BLOCK_T
    last = tl.sum(tl.where(mine, ends, 0), 0)
    _tile(
        *(x_ptr, x_scale_ptr, w_ptr, w_scale_ptr, y_ptr, tokens_ptr),
        *(group, first, last, work % out_tiles, rows, matrices, OUT, IN),
        *(BLOCK_T, SPLITS, GATHERED, W_SCALED, X_SCALED, EVEN),
    )


@triton.jit
def _tile(
    x_ptr,
    x_scale_ptr,
    w_ptr,
    w_scale_ptr,
    y_ptr,
    tokens_ptr,
    group,
    first,  # row of y
    last,  # row of y behind the group's last
    tile,  # of the group's matrices: 128 of their outs
    rows,
    matrices,
    OUT,
    IN,
    BLOCK_T: tl.constexpr,
    SPLITS: tl.constexpr,
    GATHERED: tl.constexpr,
    W_SCALED: tl.constexpr,
    X_SCALED: tl.constexpr,
    EVEN: tl.constexpr,
):
    """BLOCK_T rows, or fewer up to `last`, of 128 columns of y."""
    out_blocks = tl.cdiv(OUT, BLOCK)
    matrix = tile // out_blocks
    out_block = tile % out_blocks
    stacked = tl.cast(group * matrices + matrix, tl.int64)

    # What lies beyond an edge is read again from the last row, and not stored.
    row_T = first + tl.arange(0, BLOCK_T)
    read_T = tl.minimum(row_T, last - 1)
    if GATHERED:
        read_T = tl.load(tokens_ptr + read_T)
    out_O = out_block * BLOCK + tl.arange(0, BLOCK)
    in_I = tl.arange(0, BLOCK)
    in_blocks = tl.cdiv(IN, BLOCK)
    x_TI = x_ptr + read_T.to(tl.int64)[:, None] * IN + in_I[None, :]
    w_OI = w_ptr + stacked * OUT * IN
    w_OI += tl.minimum(out_O, OUT - 1).to(tl.int64)[:, None] * IN + in_I[None, :]
    w_scale = w_scale_ptr + (stacked * out_blocks + out_block) * in_blocks
    x_scale_T = x_scale_ptr + read_T.to(tl.int64) * in_blocks

    part = tl.program_id(1)
    each = tl.cdiv(in_blocks, SPLITS)
    sum_OT = tl.zeros((BLOCK, BLOCK_T), tl.float32)
    for block in range(part * each, tl.minimum(part * each + each, in_blocks)):
        at = block * BLOCK
        if EVEN:
            x = tl.load(x_TI + at)
            w = tl.load(w_OI + at)
        else:
            kept = (at + in_I < IN)[None, :]
            x = tl.load(x_TI + at, mask=kept, other=0.0)
            w = tl.load(w_OI + at, mask=kept, other=0.0)
        product = tl.dot(_exact(w, x.dtype), tl.trans(x), input_precision="ieee")
        if W_SCALED:
            product *= tl.load(w_scale + block)
        if X_SCALED:
            product *= tl.load(x_scale_T + block)[None, :]
        sum_OT += product

    width = matrices * OUT
    y_TO = y_ptr + (part.to(tl.int64) * rows + row_T.to(tl.int64)[:, None]) * width
    y_TO += matrix * OUT + out_O[None, :]
    stored = (row_T < last)[:, None] & (out_O < OUT)[None, :]
    tl.store(y_TO, tl.trans(sum_OT).to(y_ptr.dtype.element_ty), mask=stored)


@triton.jit
def _add_up(parts_ptr, y_ptr, size, PARTS: tl.constexpr, WIDTH: tl.constexpr):
    """y [size] = the sum of PARTS rows, in their order."""
    at = tl.program_id(0).to(tl.int64) * WIDTH + tl.arange(0, WIDTH)
    total = tl.zeros((WIDTH,), tl.float32)
    for part in range(PARTS):
        total += tl.load(parts_ptr + part * size.to(tl.int64) + at, mask=at < size, other=0.0)
    tl.store(y_ptr + at, total.to(y_ptr.dtype.element_ty), mask=at < size)


@triton.jit(do_not_specialize=["rows"])
def _quantise(
    x_ptr,
    q_ptr,
    scale_ptr,
    count_ptr,  # how many rows there are, where the host does not know it
    rows,
    IN,
    COUNTED: tl.constexpr,  # count_ptr is read
    LARGEST: tl.constexpr,
    SMALLEST: tl.constexpr,
):
    """Rows' groups of 128 values, and their scales."""
    block = tl.program_id(1)
    at = block * BLOCK + tl.arange(0, BLOCK)
    if COUNTED:
        rows = tl.load(count_ptr)
    for row in range(tl.program_id(0), rows, tl.num_programs(0)):
        row = tl.cast(row, tl.int64)
        x = tl.load(x_ptr + row * IN + at, mask=at < IN, other=0.0).to(tl.float32)
        scale = tl.math.div_rn(tl.maximum(tl.max(tl.abs(x), 0), SMALLEST), LARGEST)
        q = tl.math.div_rn(x, scale)
        tl.store(q_ptr + row * IN + at, q.to(q_ptr.dtype.element_ty), mask=at < IN)
        tl.store(scale_ptr + row * tl.cdiv(IN, BLOCK) + block, scale)


def quantise_rows(x_TI: Tensor, ends_E: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`fp8_format.quantise_rows` in one kernel; rows behind the last run of `ends_E` are left
    uninitialised."""
    x_TI = x_TI.contiguous()
    rows, columns = x_TI.shape
    blocks = ceil_div(columns, FP8_BLOCK)
    q_TI = torch.empty_like(x_TI, dtype=E4M3)
    scale = x_TI.new_empty(rows, blocks, dtype=torch.float32)
    if rows:
        _quantise[(programs(rows, ends_E), blocks)](
            *(x_TI, q_TI, scale, scale if ends_E is None else ends_E[-1:], rows, columns),
            COUNTED=ends_E is not None,
            LARGEST=LARGEST,
            SMALLEST=SMALLEST_AMAX,
            num_warps=1,
        )
    return q_TI, scale


def programs(rows: int, ends_E: Tensor | None) -> int:
    """Programs for rows of which only those up to the last run's end are there, if runs are
    given."""
    return rows if ends_E is None else min(rows, ROW_PROGRAMS)


def product(
    x_TI: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    ends_E: Tensor | None = None,
    tokens_P: Tensor | None = None,
    x_scale: Tensor | None = None,
    dtype: torch.dtype | None = None,
    expected: int | None = None,
) -> Tensor:
    """x times a weight [..., out, in], or with `ends_E` each run of rows times its own matrices of
    a stack [E, ..., out, in]. Returns [rows, all outs side by side] in `dtype`, or x's.

    `scale` is a block-fp8 weight's. With `x_scale`, x and it are what `quantise_rows` returns.
    `ends_E`, int32, holds where the runs end; rows behind the last are left uninitialised.
    `tokens_P` holds the row of x for each row of the result; without it they are the same.
    `expected` is how many of the rows are likely to be in runs, by default all: tiles are made for
    it, and more rows take longer.
    """
    assert weight.is_contiguous()
    x_TI = x_TI.contiguous()
    groups = 1 if ends_E is None else len(weight)
    outs, columns = weight.shape[-2:]
    matrices = weight.numel() // (groups * outs * columns)
    rows = len(x_TI) if tokens_P is None else len(tokens_P)
    y = x_TI.new_empty(rows, matrices * outs, dtype=dtype or x_TI.dtype)
    if not rows:
        return y
    tiles = matrices * ceil_div(outs, FP8_BLOCK)
    most = most_rows(x_TI.itemsize, is_blackwell(x_TI.device))
    splits = 1
    if ends_E is None:
        tall = _tile_rows(rows, most)
        row_tiles = ceil_div(rows, tall)
        if rows <= SPLIT_ROWS:
            splits = _splits(tiles, ceil_div(columns, FP8_BLOCK))
    else:
        expected = rows if expected is None else expected
        tall = group_tile_rows(expected, groups, most)
        row_tiles = min((expected if strided(tall) else rows) // tall + groups, rows)
    parts = y if splits == 1 else y.new_empty(splits, *y.shape, dtype=torch.float32)
    warps, stages = launch(tall, weight.itemsize, x_TI.itemsize)
    _product[(tiles * row_tiles, splits)](
        # a pointer that is not read may be any
        *(x_TI, x_TI if x_scale is None else x_scale),
        *(weight, weight if scale is None else scale, parts),
        *(x_TI if ends_E is None else ends_E, x_TI if tokens_P is None else tokens_P),
        *(rows, groups, matrices, outs, columns),
        BLOCK_T=tall,
        SPLITS=splits,
        GROUPS=0 if ends_E is None else triton.next_power_of_2(groups),
        STRIDED=ends_E is not None and strided(tall),
        GATHERED=tokens_P is not None,
        W_SCALED=scale is not None,
        X_SCALED=x_scale is not None,
        EVEN=columns % FP8_BLOCK == 0,
        num_warps=warps,
        num_stages=stages,
    )
    if splits > 1:
        size = y.numel()
        _add_up[(ceil_div(size, 1024),)](parts, y, size, splits, 1024)
    return y


def launch(tall: int, weight_bytes: int, x_bytes: int) -> tuple[int, int]:
    """Warps and stages of a program of `tall` rows, by the bytes of an item."""
    stage = FP8_BLOCK * (FP8_BLOCK * weight_bytes + tall * x_bytes)
    return 8 if tall > 16 else 4, max(1, min(4, STAGE_BYTES // stage))


def strided(tall: int) -> bool:
    """Whether programs for groups are as many as likely tiles, and loop. Three programs of 16 rows
    fit a processor only without a loop, and few rows leave few programs without a tile."""
    return tall > 16


def group_tile_rows(rows: int, groups: int, most: int) -> int:
    """Rows of x a program takes where `rows` fall to `groups` by chance: most groups fit one tile.

    A group of m rows on average has seldom more than m + 2 √m.
    """
    mean = rows / groups
    return _tile_rows(math.ceil(mean + 2 * math.sqrt(mean)), most)


def _tile_rows(rows: int, most: int) -> int:
    """Rows of x a program takes: a power of 2 that holds them all, up to `most`."""
    return min(max(16, triton.next_power_of_2(rows)), most)


def most_rows(x_bytes: int, blackwell: bool) -> int:
    """Rows of x that a program has registers for, by the bytes of an item."""
    if x_bytes == 1:
        return 32 if blackwell else 64
    return 128 if x_bytes == 2 else 32


def _splits(tiles: int, blocks: int) -> int:
    """Number of parts, none empty, that the sum over `blocks` of 128 columns is split into."""
    parts = max(1, min(ceil_div(PROGRAMS, tiles), blocks // SPLIT_BLOCKS))
    each = ceil_div(blocks, parts)
    return ceil_div(blocks, each)
