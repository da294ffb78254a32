"""The block-fp8 format, defined in plain torch.

A weight W [..., rows, columns] is stored as e4m3 values Q and one fp32 scale S for each block of
128 × 128 (smaller at the edges): W ≈ Q · S. Checkpoints call S `weight_scale_inv`, although it is
multiplied with (DeepSeek-V3 technical report, section 3.3).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ref_dsinfer.keys import FP8_BLOCK
from ref_dsinfer.rounding import ceil_div

E4M3 = torch.float8_e4m3fn
LARGEST = torch.finfo(E4M3).max  # 448
SMALLEST_AMAX = 1e-4  # an all-zero block would otherwise have scale 0 and dequantise to NaN


def scale_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the scales of a weight of this shape."""
    rows, columns = (ceil_div(size, FP8_BLOCK) for size in shape[-2:])
    return (*shape[:-2], rows, columns)


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round a weight to e4m3 with one scale a block; returns (values, scales)."""
    blocks = _blocks(weight.float())
    scale = blocks.abs().amax(dim=(-3, -1)).clamp(min=SMALLEST_AMAX) / LARGEST
    values = blocks / scale[..., :, None, :, None]
    return _unblocked(values, weight.shape).to(E4M3), scale


def dequantise(values: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Multiply e4m3 values by their blocks' scales in fp32, and round once to `dtype`."""
    weight = _blocks(values.float()) * scale[..., :, None, :, None]
    return _unblocked(weight, values.shape).to(dtype)


def quantise_rows(x_TI: Tensor) -> tuple[Tensor, Tensor]:
    """Round activations to e4m3, with one scale for each 128 values of a row or its shorter rest.

    Returns (values [T, I], scales [T, I / 128] fp32).
    """
    groups = F.pad(x_TI.float(), (0, -x_TI.shape[1] % FP8_BLOCK)).unflatten(1, (-1, FP8_BLOCK))
    scale = groups.abs().amax(dim=-1).clamp(min=SMALLEST_AMAX) / LARGEST
    values = (groups / scale[..., None]).flatten(1)[:, : x_TI.shape[1]]
    return values.to(E4M3), scale


def dequantise_rows(values: Tensor, scale: Tensor) -> Tensor:
    """The reverse of `quantise_rows`, in fp32 [T, I]."""
    return values.float() * scale.repeat_interleave(FP8_BLOCK, dim=1)[:, : values.shape[1]]


def _blocks(weight: Tensor) -> Tensor:
    """View [..., R, C] as [..., R/128, 128, C/128, 128], padded with zeros if need be."""
    rows, columns = weight.shape[-2:]
    if rows % FP8_BLOCK or columns % FP8_BLOCK:
        weight = F.pad(weight, (0, -columns % FP8_BLOCK, 0, -rows % FP8_BLOCK))
    return weight.unflatten(-2, (-1, FP8_BLOCK)).unflatten(-1, (-1, FP8_BLOCK))


def _unblocked(blocks: Tensor, shape: torch.Size) -> Tensor:
    return blocks.flatten(-2).flatten(-3, -2)[..., : shape[-2], : shape[-1]]


def scale_name(weight_name: str) -> str:
    """The checkpoint's name of a weight's scales."""
    return f"{weight_name}_scale_inv"
