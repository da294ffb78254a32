"""Attention of decoded tokens over latents in blocks, on NVIDIA GPUs: FlashDecoding for MLA.

`plain` of attention.py is its definition. All query heads share the cached rows, and a row's values
are its first columns, so a tile of rows is loaded once and used twice. A sequence's context is
split into parts, one for each program; a second kernel combines them by their softmax sums. The
number of parts depends on the batch size alone, never on lengths, which stay on the device: a CUDA
graph can capture the call.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ref_dsinfer.rounding import ceil_div

PROGRAMS = 512  # to launch at least: about two rounds of what 132 processors run at once
MOST_PARTS = 64
LOG2_E = 1.4426950408889634


@triton.jit
def _attend(
    q_ptr,  # [N, heads, KEPT + ROTATED]
    blocks_ptr,  # [B, SIZE, KEPT + ROTATED]
    table_ptr,  # [N, columns]
    lengths_ptr,  # [N]
    part_ptr,  # [N, heads, PARTS, KEPT]: softmax-weighted mean of a part's values
    sum_ptr,  # [N, heads, PARTS]: log2 of the part's softmax sum; -inf where a part has no row
    heads,
    columns,
    scale,  # times log2(e)
    KEPT: tl.constexpr,
    ROTATED: tl.constexpr,
    SIZE: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_C: tl.constexpr,  # powers of 2 that hold KEPT and ROTATED
    BLOCK_R: tl.constexpr,
):
    WIDTH: tl.constexpr = KEPT + ROTATED
    n, part = tl.program_id(0).to(tl.int64), tl.program_id(2)
    head_H = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    place_L = tl.arange(0, BLOCK_L)
    latent_C = tl.arange(0, BLOCK_C)
    rotated_R = tl.arange(0, BLOCK_R)
    real_H = head_H < heads
    real_C = latent_C < KEPT
    real_R = rotated_R < ROTATED
    q = q_ptr + (n * heads + head_H)[:, None] * WIDTH
    q_HC = tl.load(q + latent_C[None, :], mask=real_H[:, None] & real_C[None, :], other=0.0)
    q_HR = tl.load(q + KEPT + rotated_R[None, :], mask=real_H[:, None] & real_R[None, :], other=0.0)

    length = tl.load(lengths_ptr + n).to(tl.int32)
    each = tl.cdiv(tl.cdiv(length, PARTS), BLOCK_L) * BLOCK_L
    start = part * each
    stop = tl.minimum(start + each, length)
    high_H = tl.full((BLOCK_H,), float("-inf"), tl.float32)
    sum_H = tl.zeros((BLOCK_H,), tl.float32)
    mean_HC = tl.zeros((BLOCK_H, BLOCK_C), tl.float32)
    for first in range(start, stop, BLOCK_L):
        at_L = first + place_L
        real_L = at_L < stop
        block_L = tl.load(table_ptr + n * columns + at_L // SIZE, mask=real_L, other=0)
        row_L = blocks_ptr + (block_L.to(tl.int64) * SIZE + at_L % SIZE) * WIDTH
        k_LC = tl.load(
            row_L[:, None] + latent_C[None, :], mask=real_L[:, None] & real_C[None, :], other=0.0
        )
        k_LR = tl.load(
            row_L[:, None] + KEPT + rotated_R[None, :],
            mask=real_L[:, None] & real_R[None, :],
            other=0.0,
        )
        score_HL = tl.dot(q_HC, tl.trans(k_LC), input_precision="ieee")
        score_HL = tl.dot(q_HR, tl.trans(k_LR), score_HL, input_precision="ieee") * scale
        score_HL = tl.where(real_L[None, :], score_HL, float("-inf"))
        higher_H = tl.maximum(high_H, tl.max(score_HL, 1))  # finite: a tile has a real row
        fade_H = tl.exp2(high_H - higher_H)
        weight_HL = tl.exp2(score_HL - higher_H[:, None])
        sum_H = sum_H * fade_H + tl.sum(weight_HL, 1)
        mean_HC = mean_HC * fade_H[:, None]
        mean_HC += tl.dot(weight_HL.to(k_LC.dtype), k_LC, input_precision="ieee")
        high_H = higher_H

    out_H = (n * heads + head_H) * PARTS + part
    some = start < stop
    sum_H = tl.where(some, sum_H, 1.0)
    kept = real_H[:, None] & real_C[None, :]
    tl.store(
        part_ptr + out_H[:, None] * KEPT + latent_C[None, :], mean_HC / sum_H[:, None], mask=kept
    )
    tl.store(sum_ptr + out_H, high_H + tl.log2(sum_H), mask=real_H)


@triton.jit
def _combine(
    part_ptr,
    sum_ptr,
    out_ptr,  # [N · heads, KEPT]
    KEPT: tl.constexpr,
    PARTS: tl.constexpr,  # a power of 2
    BLOCK_C: tl.constexpr,
):
    """The parts' means, weighted by their softmax sums, in the parts' order."""
    row = tl.program_id(0).to(tl.int64)
    sum_P = tl.load(sum_ptr + row * PARTS + tl.arange(0, PARTS))
    high = tl.max(sum_P, 0)  # finite: a sequence has a token
    total = tl.sum(tl.exp2(sum_P - high), 0)
    latent_C = tl.arange(0, BLOCK_C)
    real_C = latent_C < KEPT
    mean_C = tl.zeros((BLOCK_C,), tl.float32)
    for part in range(PARTS):
        weight = tl.exp2(tl.load(sum_ptr + row * PARTS + part) - high) / total
        values = part_ptr + (row * PARTS + part) * KEPT + latent_C
        mean_C += weight * tl.load(values, mask=real_C, other=0.0)
    tl.store(out_ptr + row * KEPT + latent_C, mean_C.to(out_ptr.dtype.element_ty), mask=real_C)


def attend(
    q_NHL: Tensor,
    blocks_BSL: Tensor,
    tables_NM: Tensor,
    lengths_N: Tensor,
    kept: int,
    scale: float,
) -> Tensor:
    """Softmax(scale · q · keys) · values, [N, H, kept] in q's dtype; values are keys cut to `kept`.

    The keys of sequence n are the first `lengths_N[n]` rows, one at least, of the blocks
    `tables_NM[n]`. q and blocks are of one dtype.
    """
    assert blocks_BSL.is_contiguous()
    assert tables_NM.is_contiguous()
    q_NHL = q_NHL.to(blocks_BSL.dtype).contiguous()
    count, heads, width = q_NHL.shape
    tall = min(max(16, triton.next_power_of_2(heads)), 64)
    head_blocks = ceil_div(heads, tall)
    parts = parts_of(count * head_blocks)
    part = q_NHL.new_empty(count, heads, parts, kept, dtype=torch.float32)
    sums = q_NHL.new_empty(count, heads, parts, dtype=torch.float32)
    out = q_NHL.new_empty(count, heads, kept)
    rows, warps, stages = launch(tall, q_NHL.itemsize)
    block_c = triton.next_power_of_2(kept)
    _attend[(count, head_blocks, parts)](
        *(q_NHL, blocks_BSL, tables_NM, lengths_N, part, sums),
        *(heads, tables_NM.shape[1], scale * LOG2_E),
        KEPT=kept,
        ROTATED=width - kept,
        SIZE=blocks_BSL.shape[1],
        PARTS=parts,
        BLOCK_H=tall,
        BLOCK_L=rows,
        BLOCK_C=block_c,
        BLOCK_R=max(16, triton.next_power_of_2(width - kept)),
        num_warps=warps,
        num_stages=stages,
    )
    _combine[(count * heads,)](part, sums, out, KEPT=kept, PARTS=parts, BLOCK_C=block_c)
    return out


def launch(tall: int, item_bytes: int) -> tuple[int, int, int]:
    """Rows of a tile, warps and stages of a program of `tall` heads. Some stages pass before a tile
    is being loaded, since its block table comes first."""
    wide = item_bytes > 2
    return 16 if wide else 32, 8 if tall > 16 else 4, 3 if wide else 5


def parts_of(programs: int) -> int:
    """Parts that a context is split into, where `programs` run already: a power of 2."""
    return min(triton.next_power_of_2(max(1, PROGRAMS // programs)), MOST_PARTS)
