"""Rotary position embedding with YaRN, as one table of complex numbers of YaRN's magnitude."""

import math

import torch
from torch import Tensor

from ref_dsinfer import kernels
from ref_dsinfer.config import ModelConfig, Yarn


def frequencies(config: ModelConfig) -> Tensor:
    """Radians per position of each rotated pair, fp32 [rope_dim / 2].

    Whether YaRN applies depends on the configuration alone, not on the length of a run.
    """
    dim = config.rope_dim
    exponent = torch.arange(0, dim, 2, dtype=torch.float32) / dim
    plain = 1.0 / config.rope_theta**exponent
    if config.yarn is None:
        return plain
    kept = 1.0 - _ramp(config.yarn, config.rope_theta, dim)
    return plain / config.yarn.factor * (1.0 - kept) + plain * kept


def _ramp(yarn: Yarn, theta: float, dim: int) -> Tensor:
    """From 0, for pairs that turn often within the original length, to 1 for those that hardly
    do."""

    def pair(turns: float) -> float:
        length = yarn.original_length / (turns * 2 * math.pi)
        return dim * math.log(length) / (2 * math.log(theta))

    low, high = pair(yarn.beta_fast), pair(yarn.beta_slow)
    if yarn.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    width = (high - low) or 0.001  # below 0 for models of very short lengths: the ramp then falls
    return ((torch.arange(dim // 2, dtype=torch.float32) - low) / width).clamp(0, 1)


def table(config: ModelConfig, length: int) -> Tensor:
    """Rotation of every position below `length`, complex64 [length, rope_dim / 2]."""
    angles = torch.outer(torch.arange(length, dtype=torch.float32), frequencies(config))
    magnitude = config.yarn.magnitude if config.yarn else 1.0
    return torch.polar(torch.full_like(angles, magnitude), angles)


def rotate(x_THR: Tensor, rotations: Tensor, out_THR: Tensor) -> None:
    """Rotate neighbouring pairs of heads' values in fp32; `rotations` [T, R/2]. `out_THR` may be x
    itself."""
    if kernels.used(x_THR):
        from ref_dsinfer.kernels import fused  # Triton is installed only where GPUs are used

        fused.rotate(x_THR, rotations, out_THR)
    else:
        out_THR.copy_(plain_rotate(x_THR, rotations[:, None]))


def plain_rotate(x: Tensor, rotations: Tensor) -> Tensor:
    """Rotate neighbouring pairs of x [..., rope_dim] in fp32; `rotations` [..., rope_dim / 2]."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotations).flatten(-2).to(x.dtype)
