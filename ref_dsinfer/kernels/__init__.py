"""Kernels: C++ for CPUs (compiled by `cpu_kernels`), Triton for GPUs, and a library's in place of
Triton's where a user wants them.

Everything here has a plain definition in torch elsewhere, and a test that compares the two. Triton
modules are imported only where `used` is true.
"""

import os
from typing import Literal, get_args

from torch import Tensor

Kernels = Literal["auto", "own", "flashinfer"]  # of attention, on GPUs
KERNELS: tuple[Kernels, ...] = get_args(Kernels)

# Triton's interpreter: the path of a GPU, slowly, on a CPU. Triton reads it at its import, too.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def used(x: Tensor) -> bool:
    """Whether Triton kernels compute on a tensor, rather than the plain definitions: everywhere but
    on CPUs. On the meta device, which has no values, they can be counted."""
    return x.device.type != "cpu" or INTERPRETED
