"""Matrix products with weights, dense and grouped.

Plain torch below is the definition, which CPUs run; GPUs run `kernels/block_fp8.py`. Block-fp8
weights can be multiplied in two arithmetics:

- `bf16` (W8A16), the reference's: the weight times its scale is rounded to the activations' dtype.
  The kernel omits this rounding: it multiplies the e4m3 values, which any dtype holds exactly, and
  scales fp32 sums. Its product differs from the definition's by at most 2^-9 · |x| · |W| and the
  rounding of the result, and is the more exact of the two.
- `fp8` (W8A8): activations are rounded to e4m3 as well, with one scale for each 128 values of a
  row; the products of e4m3 values are exact and are summed in fp32, where both scales apply.

Shape letters: T tokens, P rows of the answer, E matrices of a stack, I in, O out.
"""

from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ref_dsinfer import fp8_format, kernels

Arithmetic = Literal["bf16", "fp8"]
ARITHMETICS: tuple[Arithmetic, ...] = ("bf16", "fp8")


def dense(
    x_TI: Tensor, weight: Tensor, scale: Tensor | None, arithmetic: Arithmetic = "bf16"
) -> Tensor:
    """x times a weight [..., out, in]; returns [T, all outs side by side].

    `scale` holds the blocks' scales of a block-fp8 weight; without it the weight is of x's dtype.
    """
    if kernels.used(x_TI) and scale is not None:
        return _with_kernels(x_TI, weight, scale, arithmetic)
    return plain(x_TI, weight, scale, arithmetic)


def in_fp32(x_TI: Tensor, weight: Tensor) -> Tensor:
    """x times an unquantised weight [out, in], both as if they were fp32: fp32 [T, out].

    On GPUs bf16 stays bf16: tensor cores multiply its values exactly and add them up in fp32.
    """
    if kernels.used(x_TI) and x_TI.dtype == weight.dtype == torch.bfloat16:
        from ref_dsinfer.kernels import block_fp8  # Triton is installed only where GPUs are used

        return block_fp8.product(x_TI, weight, None, dtype=torch.float32)
    return F.linear(x_TI.float(), weight.float())


def grouped(
    x_TI: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    ends_E: Tensor,
    tokens_P: Tensor | None = None,
    arithmetic: Arithmetic = "bf16",
    expected: int | None = None,
) -> Tensor:
    """Each run of rows times its own matrices of a stack [E, ..., out, in]; returns [P, outs].

    `ends_E`, int32, holds where the runs end; rows behind the last are undefined. `tokens_P` holds
    the row of x for each row of the result; without it they are the same. `expected` is how many
    rows are likely to be in runs, by default all; only speed depends on it.
    """
    if kernels.used(x_TI):
        return _with_kernels(x_TI, weight, scale, arithmetic, ends_E, tokens_P, expected)
    return plain_grouped(x_TI, weight, scale, ends_E, tokens_P, arithmetic)


def _with_kernels(
    x_TI: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    arithmetic: Arithmetic,
    ends_E: Tensor | None = None,
    tokens_P: Tensor | None = None,
    expected: int | None = None,
) -> Tensor:
    from ref_dsinfer.kernels import block_fp8  # Triton is installed only where GPUs are used

    x_scale, dtype = None, x_TI.dtype
    if arithmetic == "fp8" and scale is not None:
        x_TI, x_scale = block_fp8.quantise_rows(x_TI, ends_E if tokens_P is None else None)
    return block_fp8.product(x_TI, weight, scale, ends_E, tokens_P, x_scale, dtype, expected)


def plain(
    x_TI: Tensor, weight: Tensor, scale: Tensor | None, arithmetic: Arithmetic = "bf16"
) -> Tensor:
    """The definition of `dense`, on any device."""
    if scale is None:
        return F.linear(x_TI, weight.flatten(0, -2))
    if arithmetic == "bf16":
        return F.linear(x_TI, fp8_format.dequantise(weight, scale, x_TI.dtype).flatten(0, -2))
    values, scales = fp8_format.quantise_rows(x_TI)
    matrix = fp8_format.dequantise(weight, scale, torch.float32).flatten(0, -2)
    return F.linear(fp8_format.dequantise_rows(values, scales), matrix).to(x_TI.dtype)


def plain_grouped(
    x_TI: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    ends_E: Tensor,
    tokens_P: Tensor | None = None,
    arithmetic: Arithmetic = "bf16",
) -> Tensor:
    """The definition of `grouped`, on any device; synchronises with it where weights are fp8."""
    x_PI = x_TI if tokens_P is None else x_TI[tokens_P]
    if scale is None:
        return torch._grouped_mm(x_PI, weight.flatten(1, -2).transpose(1, 2), offs=ends_E)
    # Dequantized one by one, since all of them together may not fit in memory.
    ends = ends_E.tolist()
    runs = [
        plain(x_PI[start:end], weight[number], scale[number], arithmetic)
        for number, (start, end) in enumerate(pairwise([0, *ends]))
    ]
    return F.pad(torch.cat(runs), (0, 0, 0, len(x_PI) - ends[-1]))
