"""Matrix products with weights, dense and grouped.

Plain torch below is the definition, which CPUs run; GPUs run `kernels/dense.py` and
`kernels/grouped.py`. Block-fp8 weights can be multiplied in two arithmetics:

- `bf16` (W8A16), the reference's: the weight times its scale is rounded to the activations' dtype.
  The kernel omits this rounding: it multiplies the e4m3 values, which any dtype holds exactly, and
  scales fp32 sums. Its product differs from the definition's by at most 2^-9 · |x| · |W| and the
  rounding of the result, and is the more exact of the two.
- `fp8` (W8A8): activations are rounded to e4m3 as well, with one scale for each 128 values of a
  row; the products of e4m3 values are exact and are summed in fp32, where both scales apply.

Kernels also omit the rounding of sums before what is done with them in the same kernel.

Shape letters: T tokens, A active experts a token, P rows of the answer, or pairs of token and
expert, E matrices of a stack, I in, O out.
"""

from itertools import pairwise
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ref_dsinfer import fp8_format, kernels

Arithmetic = Literal["bf16", "fp8"]
ARITHMETICS: tuple[Arithmetic, ...] = ("bf16", "fp8")


class Pairs(NamedTuple):
    """What experts have returned for pairs of token and expert, sorted by expert."""

    rows_PO: Tensor
    places_TA: Tensor  # int32: where a token's pairs lie, −1 where one is left out
    weights_TA: Tensor  # fp32


def dense(
    x_TI: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    arithmetic: Arithmetic = "bf16",
    dtype: torch.dtype | None = None,
    gated: bool = False,
    pairs: Pairs | None = None,
) -> Tensor:
    """x times a weight [..., out, in]: [T, all outs side by side] in `dtype`, or x's.

    `scale` holds the blocks' scales of a block-fp8 weight; without it the weight is of x's dtype.
    `gated`: the weight is a gate's and an up's, and the result silu(gate x) · up x. The weighted
    sum of each token's `pairs` is added to the result, which is then fp32.
    """
    dtype = torch.float32 if pairs else dtype or x_TI.dtype
    if kernels.used(x_TI) and (scale is not None or gated or pairs):
        from ref_dsinfer.kernels import block_fp8  # Triton is installed only where GPUs are used
        from ref_dsinfer.kernels import dense as kernel

        x_scale = None
        if arithmetic == "fp8" and scale is not None:
            x_TI, x_scale = block_fp8.quantise_rows(x_TI)
        return kernel.product(x_TI, weight, scale, x_scale, dtype, gated, pairs)
    y_TO = plain(x_TI, weight, scale, arithmetic)
    y_TO = plain_gated(y_TO) if gated else y_TO
    return plain_combine(pairs, y_TO) if pairs else y_TO.to(dtype)


def in_fp32(x_TI: Tensor, weight: Tensor) -> Tensor:
    """x times an unquantised weight [out, in], both as if they were fp32: fp32 [T, out].

    On GPUs bf16 stays bf16: tensor cores multiply its values exactly and add them up in fp32.
    """
    if kernels.used(x_TI) and x_TI.dtype == weight.dtype == torch.bfloat16:
        from ref_dsinfer.kernels import dense  # Triton is installed only where GPUs are used

        return dense.product(x_TI, weight, None, dtype=torch.float32)
    return F.linear(x_TI.float(), weight.float())


def grouped(
    x_TI: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    ends_E: Tensor,
    tokens_P: Tensor | None = None,
    arithmetic: Arithmetic = "bf16",
    gated: bool = False,
    expected: int | None = None,
) -> Tensor:
    """Each run of rows times its own matrices of a stack [E, ..., out, in]; returns [P, outs].

    `ends_E`, int32, holds where the runs end; rows behind the last are undefined. `tokens_P` holds
    the row of x for each row of the result; without it they are the same. `gated`: as in `dense`.
    `expected` is how many rows are likely to be in runs, by default all; only speed depends on it.
    """
    if kernels.used(x_TI):
        from ref_dsinfer.kernels import block_fp8  # Triton is installed only where GPUs are used
        from ref_dsinfer.kernels import grouped as kernel

        x_scale, dtype = None, x_TI.dtype
        if arithmetic == "fp8" and scale is not None:
            x_TI, x_scale = block_fp8.quantise_rows(x_TI, ends_E if tokens_P is None else None)
        return kernel.product(
            x_TI, weight, scale, ends_E, tokens_P, x_scale, dtype, gated, expected
        )
    y_PO = plain_grouped(x_TI, weight, scale, ends_E, tokens_P, arithmetic)
    return plain_gated(y_PO) if gated else y_PO


def plain(
    x_TI: Tensor, weight: Tensor, scale: Tensor | None, arithmetic: Arithmetic = "bf16"
) -> Tensor:
    """The definition of the products of `dense`, on any device."""
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
    """The definition of the products of `grouped`, on any device; synchronises with it where
    weights are fp8."""
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


def plain_gated(gate_up: Tensor) -> Tensor:
    """silu(gate) · up, computed in fp32; `gate_up` [T, 2 I] holds the two side by side."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    return (F.silu(gate) * up).to(gate_up.dtype)


def plain_combine(pairs: Pairs, x_TO: Tensor | None = None) -> Tensor:
    """The weighted sum of each token's pairs, and x, in fp32: [T, O]."""
    y_PO, places_TA, weights_TA = pairs
    if len(y_PO):
        weights_TA = weights_TA.masked_fill(places_TA < 0, 0)
        y_TAO = y_PO.float()[places_TA.clamp(min=0)]
        # in place: this is a step's largest tensor
        sum_TO = y_TAO.mul_(weights_TA[..., None]).sum(dim=1)
    else:
        sum_TO = y_PO.new_zeros(len(places_TA), y_PO.shape[1], dtype=torch.float32)
    return sum_TO if x_TO is None else sum_TO + x_TO
