"""Kernels for CPUs, compiled once on the machine that runs them, in a few seconds.

Without a C++ compiler the engine falls back to plain torch, which computes the same.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ref_dsinfer import cpu

log = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("kernels") / "attend.cpp"
COMPILERS = ("c++", "g++", "clang++")
# Lets sums be reordered, and so vectorised. Not -ffast-math: there are infinities.
FLAGS: tuple[str, ...] = (
    *("-std=c++17", "-O3", "-march=native", "-fPIC", "-fopenmp", "-fno-math-errno"),
    *("-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math"),
)
if platform.machine() == "x86_64":
    FLAGS += ("-mprefer-vector-width=512",)  # where there are such vectors
HEADS = 2  # of a query that the C++ code handles together
NAMES = {torch.float32: "attend_float32", torch.bfloat16: "attend_bfloat16"}


@cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels; None with a warning, once, where they can't be compiled."""
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        log.warning("no C++ compiler was found: decoding on this CPU will be slower (install g++)")
        return None
    try:
        return ctypes.CDLL(str(_built(compiler)))
    except subprocess.CalledProcessError as error:
        lines = error.stderr.decode(errors="replace").strip().splitlines()
        reason = lines[-1] if lines else f"{compiler} failed"
    except OSError as error:
        reason = str(error)
    log.warning("the CPU kernels can't be compiled, decoding will be slower: %s", reason)
    return None


def attend(
    q_NHL: Tensor,
    blocks_BSL: Tensor,
    tables_NM: Tensor,
    lengths_N: Tensor,
    kept: int,
    scale: float,
) -> Tensor:
    """Softmax(scale · q · keys) · values, fp32 [N, H, kept]; values are keys cut to `kept`.

    The keys of token n are the first `lengths_N[n]` slots of the blocks `tables_NM[n]`. `library`
    must not return None.
    """
    kernels = library()
    assert kernels
    assert blocks_BSL.is_contiguous()
    unpadded = q_NHL.shape[1]
    q_NHL = F.pad(q_NHL.float(), (0, 0, 0, -unpadded % HEADS)).contiguous()
    count, heads, width = q_NHL.shape
    output = q_NHL.new_empty(count, heads, kept)
    sizes = (count, heads, width, kept, tables_NM.shape[1], blocks_BSL.shape[1])
    getattr(kernels, NAMES[blocks_BSL.dtype])(
        *(ctypes.c_void_p(t.data_ptr()) for t in (q_NHL, blocks_BSL, tables_NM, lengths_N, output)),
        *map(ctypes.c_int64, sizes),
        ctypes.c_float(scale),
    )
    return output[:, :unpadded]


def _built(compiler: str) -> Path:
    """The library for this source, these flags and this processor; compiled if it is missing."""
    about = "\n".join((SOURCE.read_text(), *FLAGS, compiler, cpu.about()))
    name = f"attend-{hashlib.sha256(about.encode()).hexdigest()[:16]}.so"
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ref_dsinfer"
    built = folder / name
    if not built.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as making:
            unit, whole = Path(making, "attend.o"), Path(making, "attend.so")
            # Linked without OpenMP: torch has loaded its own library, and two would conflict.
            for words in (
                (*FLAGS, "-c", str(SOURCE), "-o", str(unit)),
                ("-shared", str(unit), "-o", str(whole)),
            ):
                subprocess.run([compiler, *words], check=True, capture_output=True)
            whole.replace(built)
    return built
