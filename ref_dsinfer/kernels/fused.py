"""Norms and rotations on NVIDIA GPUs, each with what goes before or after it in one kernel.

A decode step has thousands of kernels, and small ones take longer to start than to run. The
definitions are the plain methods and functions of `layers.py`, `rope.py` and `attention.py`.

Shape letters: T tokens, D a row's values, H heads, C latent, R rotated, L = C + R.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ref_dsinfer.rounding import ceil_div


@triton.jit
def _normed(x, weight_ptr, D, eps, BLOCK: tl.constexpr):
    """The norm of a row of D values, fp32."""
    column = tl.arange(0, BLOCK)
    x = x.to(tl.float32)
    x *= tl.math.rsqrt(tl.sum(x * x, 0) / D + eps)
    return x * tl.load(weight_ptr + column, mask=column < D, other=0.0)


@triton.jit
def _norm(
    x_ptr,  # [T, D], row after row at `stride`
    part_ptr,  # [T, D]
    weight_ptr,  # [D]
    sum_ptr,  # [T, D]
    out_ptr,  # [T, D]
    stride,
    D,
    eps,
    ADDED: tl.constexpr,  # part_ptr is read, sum_ptr written
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    real = column < D
    x = tl.load(x_ptr + row * stride + column, mask=real, other=0.0)
    if ADDED:
        x = (x.to(tl.float32) + tl.load(part_ptr + row * D + column, mask=real, other=0.0)).to(
            sum_ptr.dtype.element_ty
        )
        tl.store(sum_ptr + row * D + column, x, mask=real)
    x = _normed(x, weight_ptr, D, eps, BLOCK)
    tl.store(out_ptr + row * D + column, x.to(out_ptr.dtype.element_ty), mask=real)


@triton.jit
def _turned(x_ptr, rotation_ptr, pair, real):
    """The pairs at x, rotated: their first and their second values, fp32."""
    first = tl.load(x_ptr + 2 * pair, mask=real, other=0.0).to(tl.float32)
    second = tl.load(x_ptr + 2 * pair + 1, mask=real, other=0.0).to(tl.float32)
    cosine = tl.load(rotation_ptr + 2 * pair, mask=real, other=0.0)
    sine = tl.load(rotation_ptr + 2 * pair + 1, mask=real, other=0.0)
    return first * cosine - second * sine, first * sine + second * cosine


@triton.jit
def _rotate(
    x_ptr,  # [T, H, R], at two strides
    rotations_ptr,  # [T, R]: cosine and sine of each pair
    out_ptr,  # [T, H, R], at two strides
    token_stride,
    head_stride,
    out_token_stride,
    out_head_stride,
    heads,
    R,
    BLOCK_H: tl.constexpr,
    BLOCK_P: tl.constexpr,  # pairs
):
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)[:, None]
    pair = tl.arange(0, BLOCK_P)[None, :]
    real = (head < heads) & (pair < R // 2)
    x_ptr += token * token_stride + head * head_stride
    first, second = _turned(x_ptr, rotations_ptr + token * R, pair, real)
    out_ptr += token * out_token_stride + head * out_head_stride + 2 * pair
    tl.store(out_ptr, first.to(out_ptr.dtype.element_ty), mask=real)
    tl.store(out_ptr + 1, second.to(out_ptr.dtype.element_ty), mask=real)


@triton.jit
def _latents(
    x_ptr,  # [T, C + R], row after row at `stride`
    weight_ptr,  # [C]
    rotations_ptr,  # [T, R]: cosine and sine of each pair
    slots_ptr,  # [T]
    latents_ptr,  # [T, C + R]
    cache_ptr,  # [slots, C + R]
    q_ptr,  # [T, Q], row after row at `q_stride`
    q_weight_ptr,  # [Q]
    queries_ptr,  # [T, Q]
    stride,
    q_stride,
    C,
    R,
    Q,
    eps,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,  # pairs
    BLOCK_Q: tl.constexpr,  # 0: no queries
):
    """A token's latent, normalised, and its key, rotated: as a result and into the cache. And its
    query's latent, normalised."""
    token = tl.program_id(0).to(tl.int64)
    row = token * (C + R)
    cached = tl.load(slots_ptr + token).to(tl.int64) * (C + R)
    x_ptr += token * stride
    column = tl.arange(0, BLOCK_C)
    real = column < C
    x = _normed(tl.load(x_ptr + column, mask=real, other=0.0), weight_ptr, C, eps, BLOCK_C)
    x = x.to(latents_ptr.dtype.element_ty)
    tl.store(latents_ptr + row + column, x, mask=real)
    tl.store(cache_ptr + cached + column, x, mask=real)

    pair = tl.arange(0, BLOCK_P)
    real = pair < R // 2
    first, second = _turned(x_ptr + C, rotations_ptr + token * R, pair, real)
    first = first.to(latents_ptr.dtype.element_ty)
    second = second.to(latents_ptr.dtype.element_ty)
    place = C + 2 * pair
    tl.store(latents_ptr + row + place, first, mask=real)
    tl.store(latents_ptr + row + place + 1, second, mask=real)
    tl.store(cache_ptr + cached + place, first, mask=real)
    tl.store(cache_ptr + cached + place + 1, second, mask=real)

    if BLOCK_Q:
        column = tl.arange(0, BLOCK_Q)
        real = column < Q
        x = tl.load(q_ptr + token * q_stride + column, mask=real, other=0.0)
        x = _normed(x, q_weight_ptr, Q, eps, BLOCK_Q)
        tl.store(queries_ptr + token * Q + column, x.to(queries_ptr.dtype.element_ty), mask=real)


def add_norm(
    x_TD: Tensor, part_TD: Tensor | None, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """`RMSNorm.plain_added` in one kernel."""
    assert x_TD.stride(1) == 1
    tokens, size = x_TD.shape
    out_TD = x_TD.new_empty(tokens, size)
    sum_TD = x_TD if part_TD is None else torch.empty_like(out_TD)
    if tokens:
        block = triton.next_power_of_2(size)
        _norm[(tokens,)](
            *(x_TD, x_TD if part_TD is None else part_TD.contiguous(), weight, sum_TD, out_TD),
            *(x_TD.stride(0), size, eps),
            ADDED=part_TD is not None,
            BLOCK=block,
            num_warps=8 if block > 2048 else 4,
        )
    return sum_TD, out_TD


def rotate(x_THR: Tensor, rotations: Tensor, out_THR: Tensor) -> None:
    """`rope.plain_rotate` of heads in one kernel; `rotations`: complex64 [T, R/2]. `out_THR` may be
    x itself."""
    assert x_THR.stride(2) == out_THR.stride(2) == 1
    tokens, heads, size = x_THR.shape
    if tokens:
        _rotate[(tokens, ceil_div(heads, 16))](
            *(x_THR, torch.view_as_real(rotations).contiguous(), out_THR),
            *(*x_THR.stride()[:2], *out_THR.stride()[:2], heads, size),
            BLOCK_H=16,
            BLOCK_P=triton.next_power_of_2(size // 2),
        )


def latents(
    x_TL: Tensor,
    weight: Tensor,
    eps: float,
    rotations: Tensor,
    blocks_BSL: Tensor,
    slots_T: Tensor,
    queries: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor | None, Tensor]:
    """`attention.plain_latents` in one kernel, which also normalises the queries' latents [T, Q],
    if they and their weight are given. Returns first these, then the others."""
    assert blocks_BSL.is_contiguous()
    assert blocks_BSL.dtype == x_TL.dtype
    assert x_TL.stride(1) == 1
    q_TQ, q_weight = queries or (x_TL[:, :0], weight)
    assert q_TQ.stride(1) == 1
    latents_TL, queries_TQ = x_TL.new_empty(x_TL.shape), x_TL.new_empty(q_TQ.shape)
    kept, wide = len(weight), q_TQ.shape[1]
    rotated = x_TL.shape[1] - kept
    if len(x_TL):
        _latents[(len(x_TL),)](
            *(x_TL, weight, torch.view_as_real(rotations).contiguous(), slots_T),
            *(latents_TL, blocks_BSL, q_TQ, q_weight, queries_TQ),
            *(x_TL.stride(0), q_TQ.stride(0), kept, rotated, wide, eps),
            BLOCK_C=triton.next_power_of_2(kept),
            BLOCK_P=triton.next_power_of_2(rotated // 2),
            BLOCK_Q=0 if queries is None else triton.next_power_of_2(wide),
        )
    return None if queries is None else queries_TQ, latents_TL
