"""Attention of decoded tokens over latents in blocks, on NVIDIA GPUs: FlashDecoding for MLA.

`plain` of attention.py is its definition. All query heads share the cached rows, and a row's values
are its first columns, so a tile of rows is loaded once and used twice. A sequence's context is
split into chunks of one length, one for each program, so that a long sequence is many programs
and not a longer one; a second kernel combines them by their softmax sums. A sequence of one chunk
needs no second kernel: few sequences have short chunks, and many of them keep a GPU busy with long
ones. The longest sequences come first, so that the last programs to start are short.

The grid is sized for the longest context that the block tables hold; programs behind a sequence's
end return at once. Lengths stay on the device: a CUDA graph can capture the call.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ref_dsinfer.kernels.devices import is_blackwell
from ref_dsinfer.rounding import ceil_div

PROGRAMS = 132  # to have work for at TYPICAL contexts: an H100's processors run one each
TYPICAL = 4096  # tokens
SHORTEST, LONGEST = 128, 4096  # tokens of a chunk
MOST_PROGRAMS = 4096  # bounds the chunks' results, of up to 128 KiB each; above, chunks are longer
LOG2_E = 1.4426950408889634


@triton.jit(do_not_specialize=["columns", "chunk", "parts"])
def _attend(
    q_ptr,  # [N, heads, KEPT + ROTATED]
    blocks_ptr,  # [B, SIZE, KEPT + ROTATED]
    table_ptr,  # [N, columns]
    lengths_ptr,  # [N]
    order_ptr,  # [N]: the longest sequence first
    part_ptr,  # [N, heads, parts, KEPT]: softmax-weighted mean of a chunk's values
    sum_ptr,  # [N, heads, parts]: log2 of the chunk's softmax sum
    out_ptr,  # [N, heads, KEPT]: the same of sequences of one chunk
    heads,
    columns,
    chunk,
    parts,
    scale,  # times log2(e)
    KEPT: tl.constexpr,
    ROTATED: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_C: tl.constexpr,  # powers of 2 that hold KEPT and ROTATED
    BLOCK_R: tl.constexpr,
):
    WIDTH: tl.constexpr = KEPT + ROTATED
    # Programs of the same rows, for other heads, run side by side: the rows are then read once.
    part, n = tl.program_id(1), tl.load(order_ptr + tl.program_id(2))
    length = tl.load(lengths_ptr + n).to(tl.int32)
    start = part * chunk
    if start >= length:
        return
    stop = tl.minimum(start + chunk, length)
    head_H = tl.program_id(0) * BLOCK_H + tl.arange(0, BLOCK_H)
    place_L = tl.arange(0, BLOCK_L)
    latent_C = tl.arange(0, BLOCK_C)
    rotated_R = tl.arange(0, BLOCK_R)
    real_H = head_H < heads
    real_C = latent_C < KEPT
    real_R = rotated_R < ROTATED
    # Offsets that need 64 bits are added to pointers once; within a sequence 32 bits suffice.
    n = n.to(tl.int64)
    table_ptr += n * columns
    part_ptr += n * heads * parts * KEPT
    sum_ptr += n * heads * parts
    q = q_ptr + n * heads * WIDTH + head_H[:, None] * WIDTH
    q_HC = tl.load(q + latent_C[None, :], mask=real_H[:, None] & real_C[None, :], other=0.0)
    q_HR = tl.load(q + KEPT + rotated_R[None, :], mask=real_H[:, None] & real_R[None, :], other=0.0)

    high_H = tl.full((BLOCK_H,), float("-inf"), tl.float32)
    sum_H = tl.zeros((BLOCK_H,), tl.float32)
    mean_HC = tl.zeros((BLOCK_H, BLOCK_C), tl.float32)
    for first in range(start, stop, BLOCK_L):
        at_L = first + place_L
        real_L = at_L < stop
        block_L = tl.load(table_ptr + at_L // SIZE, mask=real_L, other=0)
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

    mean_HC /= sum_H[:, None]
    kept = real_H[:, None] & real_C[None, :]
    if length <= chunk:
        out_HC = out_ptr + n * heads * KEPT + head_H[:, None] * KEPT + latent_C[None, :]
        tl.store(out_HC, mean_HC.to(out_ptr.dtype.element_ty), mask=kept)
    else:
        part_H = head_H * parts + part
        tl.store(part_ptr + part_H[:, None] * KEPT + latent_C[None, :], mean_HC, mask=kept)
        tl.store(sum_ptr + part_H, high_H + tl.log2(sum_H), mask=real_H)


@triton.jit(do_not_specialize=["chunk", "parts"])
def _combine(
    part_ptr,
    sum_ptr,
    lengths_ptr,
    out_ptr,  # [N, heads, KEPT]
    heads,
    chunk,
    parts,
    KEPT: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The chunks' means of a sequence of several, weighted by their softmax sums, in the chunks'
    order."""
    row = tl.program_id(0).to(tl.int64)
    length = tl.load(lengths_ptr + row // heads).to(tl.int32)
    if length <= chunk:
        return
    latent_C = tl.arange(0, BLOCK_C)
    real_C = latent_C < KEPT
    high, total = float("-inf"), 0.0
    mean_C = tl.zeros((BLOCK_C,), tl.float32)
    for part in range(0, tl.cdiv(length, chunk)):
        at = row * parts + part
        own = tl.load(sum_ptr + at)
        higher = tl.maximum(high, own)
        fade, weight = tl.exp2(high - higher), tl.exp2(own - higher)
        total = total * fade + weight
        mean_C = mean_C * fade + weight * tl.load(part_ptr + at * KEPT + latent_C, mask=real_C)
        high = higher
    mean_C /= total
    tl.store(out_ptr + row * KEPT + latent_C, mean_C.to(out_ptr.dtype.element_ty), mask=real_C)


def attend(
    q_NHL: Tensor,
    blocks_BSL: Tensor,
    tables_NM: Tensor,
    lengths_N: Tensor,
    order_N: Tensor,
    kept: int,
    scale: float,
) -> Tensor:
    """Softmax(scale · q · keys) · values, [N, H, kept] in q's dtype; values are keys cut to `kept`.
    Sequences are started in `order_N`.

    The keys of sequence n are the first `lengths_N[n]` rows, one at least, of the blocks
    `tables_NM[n]`. q and blocks are of one dtype.
    """
    assert blocks_BSL.is_contiguous()
    assert tables_NM.is_contiguous()
    q_NHL = q_NHL.to(blocks_BSL.dtype).contiguous()
    count, heads, width = q_NHL.shape
    tall = tile_heads(heads, q_NHL.itemsize)
    head_blocks = ceil_div(heads, tall)
    size = blocks_BSL.shape[1]
    chunk = chunk_tokens(count * head_blocks, tables_NM.shape[1] * size)
    parts = ceil_div(tables_NM.shape[1] * size, chunk)
    part = q_NHL.new_empty(count, heads, parts, kept, dtype=torch.float32)
    sums = q_NHL.new_empty(count, heads, parts, dtype=torch.float32)
    out = q_NHL.new_empty(count, heads, kept)
    rows, warps, stages = launch(tall, q_NHL.itemsize, is_blackwell(q_NHL.device))
    block_c = triton.next_power_of_2(kept)
    _attend[(head_blocks, parts, count)](
        *(q_NHL, blocks_BSL, tables_NM, lengths_N, order_N, part, sums, out),
        *(heads, tables_NM.shape[1], chunk, parts, scale * LOG2_E),
        KEPT=kept,
        ROTATED=width - kept,
        SIZE=size,
        BLOCK_H=tall,
        BLOCK_L=rows,
        BLOCK_C=block_c,
        BLOCK_R=max(16, triton.next_power_of_2(width - kept)),
        num_warps=warps,
        num_stages=stages,
    )
    if parts > 1:
        _combine[(count * heads,)](
            *(part, sums, lengths_N, out, heads, chunk, parts), KEPT=kept, BLOCK_C=block_c
        )
    return out


def tile_heads(heads: int, item_bytes: int) -> int:
    """Heads of a program: a power of 2, within its registers."""
    return min(max(16, triton.next_power_of_2(heads)), 64 if item_bytes == 2 else 16)


def launch(tall: int, item_bytes: int, blackwell: bool) -> tuple[int, int, int]:
    """Rows of a tile, warps and stages of a program of `tall` heads.

    Some stages pass before a tile is being loaded, since its block table comes first. Blackwell's
    tensor cores, which take 64 heads, want operands in shared memory that Hopper's do not.
    """
    if item_bytes > 2:
        return 16, 8 if tall > 16 else 4, 3
    if blackwell and tall == 64:
        return 16, 8, 4
    return 32, 8 if tall > 16 else 4, 5


def chunk_tokens(programs: int, context: int) -> int:
    """Tokens of a chunk of contexts of up to `context` tokens, where a chunk of all sequences and
    heads is so many programs. The same for all batches of one size and width of table."""
    balanced = TYPICAL * programs // PROGRAMS
    bounded = ceil_div(context * programs, MOST_PROGRAMS)
    tokens = max(min(max(balanced, SHORTEST), LONGEST), bounded)
    return ceil_div(tokens, SHORTEST) * SHORTEST
