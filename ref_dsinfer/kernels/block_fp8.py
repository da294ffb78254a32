"""What matrix products on NVIDIA GPUs have in common, over weights that stay block-fp8 in memory:
the sums of one program, and the quantisation of activations.

`gemm.py` has the products' definition in plain torch. Decoding reads every weight once for few
rows, so it is memory-bound: a program owns 128 rows of a weight, streams 128 columns at a time
through registers, and multiplies them by its rows of x. The weight is the left operand (y is
computed transposed), since tensor cores want 64 rows there and few on the right.

Sums are kept in fp32. Each block of 128 columns is a product of its own, to which the block's scale
is applied; that is also why fp8 products stay accurate, whose sums inside a tensor core have 14
bits. Nothing is tuned at run time.

Of a gate and an up matrix a program owns 64 rows each, and multiplies silu(gate x) by up x itself.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ref_dsinfer.fp8_format import E4M3, LARGEST, SMALLEST_AMAX
from ref_dsinfer.keys import FP8_BLOCK
from ref_dsinfer.rounding import ceil_div

BLOCK = tl.constexpr(FP8_BLOCK)
HALF = tl.constexpr(FP8_BLOCK // 2)
ROW_PROGRAMS = 512  # that take one row after another, to launch at most
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


@triton.jit
def sums(
    x_ptr,  # [tokens, IN]
    x_scale_ptr,  # [tokens, IN / 128]
    w_ptr,  # [groups, matrices, OUT, IN]
    w_scale_ptr,  # [groups, matrices, OUT / 128, IN / 128]
    read_T,  # [BLOCK_T]: rows of x
    group,
    tile,  # of the group's matrices: 128 of their outs
    matrices,
    OUT,
    IN,
    begin,  # of IN / 128
    end,
    BLOCK_T: tl.constexpr,
    GATED: tl.constexpr,  # of two matrices, whose outs take turns
    W_SCALED: tl.constexpr,
    X_SCALED: tl.constexpr,
    EVEN: tl.constexpr,  # IN is a multiple of 128
):
    """The products of rows of x and 128 outs, summed up from one block of columns to another:
    [BLOCK_T, 128]."""
    out_blocks = tl.cdiv(OUT, BLOCK)
    in_blocks = tl.cdiv(IN, BLOCK)
    place_O = tl.arange(0, BLOCK)
    in_I = tl.arange(0, BLOCK)
    # What lies beyond an edge is read again from the last row, and not stored.
    if GATED:
        stacked = tl.cast(group, tl.int64) * 2 + place_O % 2
        row_O = stacked * OUT + tl.minimum(tile * HALF + place_O // 2, OUT - 1)
        w_scale = w_scale_ptr + (stacked * out_blocks + tile * HALF // BLOCK) * in_blocks
    else:
        stacked = tl.cast(group * matrices + tile // out_blocks, tl.int64)
        row_O = stacked * OUT + tl.minimum(tile % out_blocks * BLOCK + place_O, OUT - 1)
        w_scale = w_scale_ptr + (stacked * out_blocks + tile % out_blocks) * in_blocks
    w_OI = w_ptr + row_O[:, None] * IN + in_I[None, :]
    x_TI = x_ptr + read_T.to(tl.int64)[:, None] * IN + in_I[None, :]
    x_scale_T = x_scale_ptr + read_T.to(tl.int64) * in_blocks
    sum_OT = tl.zeros((BLOCK, BLOCK_T), tl.float32)
    for block in range(begin, end):
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
            scale = tl.load(w_scale + block)
            product *= scale[:, None] if GATED else scale
        if X_SCALED:
            product *= tl.load(x_scale_T + block)[None, :]
        sum_OT += product
    return tl.trans(sum_OT)


@triton.jit
def activations(sum_TO, BLOCK_T: tl.constexpr):
    """silu(gate) · up of sums whose gates and ups take turns: [BLOCK_T, 64]."""
    gate, up = tl.split(tl.reshape(sum_TO, [BLOCK_T, HALF, 2]))
    return gate / (1.0 + tl.exp(-gate)) * up


@triton.jit
def column(tile, OUT, GATED: tl.constexpr):
    """Of a tile's values, which columns of y they are, and which of them are there: 64 if GATED,
    else 128."""
    if GATED:
        column_O = tile * HALF + tl.arange(0, HALF)
        real_O = column_O < OUT
    else:
        out_blocks = tl.cdiv(OUT, BLOCK)
        out_O = tile % out_blocks * BLOCK + tl.arange(0, BLOCK)
        column_O = tile // out_blocks * OUT + out_O
        real_O = out_O < OUT
    return column_O, real_O


def tiles(weight: Tensor, gated: bool) -> int:
    """How many times 128 rows a group's matrices [..., matrices, out, in] are."""
    matrices = 1 if weight.dim() == 2 else weight.shape[-3]
    if gated:
        assert matrices == 2
        return ceil_div(weight.shape[-2], FP8_BLOCK // 2)
    return matrices * ceil_div(weight.shape[-2], FP8_BLOCK)


def launch(tall: int, weight_bytes: int, x_bytes: int, gated: bool) -> tuple[int, int]:
    """Warps and stages of a program of `tall` rows, by the bytes of an item. A gate and an up take
    more registers than four warps have on Blackwell."""
    stage = FP8_BLOCK * (FP8_BLOCK * weight_bytes + tall * x_bytes)
    warps = 8 if tall > 16 or gated else 4
    return warps, max(1, min(4, STAGE_BYTES // stage))


def tile_rows(rows: int, most: int) -> int:
    """Rows of x a program takes: a power of 2 that holds them all, up to `most`."""
    return min(max(16, triton.next_power_of_2(rows)), most)


def most_rows(x_bytes: int, blackwell: bool) -> int:
    """Rows of x that a program has registers for, by the bytes of an item."""
    if x_bytes == 1:
        return 32 if blackwell else 64
    return 128 if x_bytes == 2 else 32


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
        programs = rows if ends_E is None else min(rows, ROW_PROGRAMS)
        _quantise[(programs, blocks)](
            *(x_TI, q_TI, scale, scale if ends_E is None else ends_E[-1:], rows, columns),
            COUNTED=ends_E is not None,
            LARGEST=LARGEST,
            SMALLEST=SMALLEST_AMAX,
            num_warps=1,
        )
    return q_TI, scale
