"""What this machine's processor can do. Needs no torch, so every backend may ask."""

import platform
from functools import cache
from pathlib import Path

DTYPES = ("auto", "bfloat16", "float32")  # of activations


def dtype_for(dtype: str, device: str) -> str:
    """Resolve "auto" for a device, cpu or cuda: bfloat16, except on CPUs that can't multiply it.

    Without such instructions torch multiplies bfloat16 one number at a time: on an AVX2 machine,
    1,024 x 1,024 matrices took 70 times as long as in float32 (torch 2.13).
    """
    if dtype != "auto":
        return dtype
    return "bfloat16" if device != "cpu" or _multiplies_bfloat16() else "float32"


def about() -> str:
    """Model and flags of the processor, which natively compiled code depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags"))}))


@cache
def _multiplies_bfloat16() -> bool:
    """Whether oneDNN, torch's library for products, supports it: with AVX-512, or on Arm."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return False
    words = {
        word for line in lines if line.startswith(("flags", "Features")) for word in line.split()
    }
    return {"avx512bw", "avx512vl", "avx512dq"} <= words or "bf16" in words
