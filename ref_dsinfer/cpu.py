"""What this machine's processor can do. Needs no torch, so every backend may ask."""

import ctypes
import platform
from functools import cache
from pathlib import Path

DTYPES = ("auto", "bfloat16", "float32")  # of activations
# Options of glibc's mallopt.
TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX = -1, -3, -8
KEPT = 1 << 30  # bytes


def dtype_for(dtype: str, device: str) -> str:
    """Resolve "auto" for a device, cpu or cuda: bfloat16, except on CPUs that can't multiply it.

    Without such instructions torch multiplies bfloat16 one number at a time: on an AVX2 machine,
    1,024 x 1,024 matrices took 70 times as long as in float32 (torch 2.13).
    """
    if dtype != "auto":
        return dtype
    return "bfloat16" if device != "cpu" or _multiplies_bfloat16() else "float32"


def keep_freed_memory() -> None:
    """Let glibc keep what a step frees for the next one; to be called before threads start.

    By default it returns large blocks to the kernel, which clears every page of new ones: a fifth
    of the processor time of long prompts. Only the first of its arenas can keep blocks above 64
    MiB, so all threads share that one.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for option, value in ((ARENA_MAX, 1), (MMAP_THRESHOLD, KEPT), (TRIM_THRESHOLD, KEPT)):
            libc.mallopt(option, value)


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
