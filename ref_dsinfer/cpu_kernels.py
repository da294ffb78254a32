"""Kernels for CPUs, compiled on the machine that runs them, once, in a few seconds.

Where there is no C++ compiler the engine does without: what a kernel computes is also there in
plain torch.
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
# Sums may be reordered, so that they can be vectorised. Not -ffast-math: there are infinities.
FLAGS: tuple[str, ...] = (
    *("-std=c++17", "-O3", "-march=native", "-fPIC", "-fopenmp", "-fno-math-errno"),
    *("-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math"),
)
if platform.machine() == "x86_64":
    FLAGS += ("-mprefer-vector-width=512",)  # where there are such vectors
HEADS = 2  # of a query at a time, as in the source
NAMES = {torch.float32: "attend_float32", torch.bfloat16: "attend_bfloat16"}


@cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels; None where they can't be had, which is said once."""
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        log.warning("no C++ compiler was found: decoding on this CPU will be slower")
        return None
    try:
        return ctypes.CDLL(str(_built(compiler)))
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip().splitlines()
        reason = said[-1] if said else f"{compiler} failed"
    except OSError as error:
        reason = str(error)
    log.warning("the CPU kernels can't be used, decoding will be slower: %s", reason)
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

    The keys of sequence n are the first `lengths_N[n]` rows of the blocks `tables_NM[n]`.
    `library` must not be None.
    """
    kernels = library()
    assert kernels
    assert blocks_BSL.is_contiguous()
    asked = q_NHL.shape[1]
    q_NHL = F.pad(q_NHL.float(), (0, 0, 0, -asked % HEADS)).contiguous()
    count, heads, width = q_NHL.shape
    output = q_NHL.new_empty(count, heads, kept)
    sizes = (count, heads, width, kept, tables_NM.shape[1], blocks_BSL.shape[1])
    getattr(kernels, NAMES[blocks_BSL.dtype])(
        *(ctypes.c_void_p(t.data_ptr()) for t in (q_NHL, blocks_BSL, tables_NM, lengths_N, output)),
        *map(ctypes.c_int64, sizes),
        ctypes.c_float(scale),
    )
    return output[:, :asked]


def _built(compiler: str) -> Path:
    """The library for this source, these flags and this processor; compiled where it is missing."""
    about = "\n".join((SOURCE.read_text(), *FLAGS, compiler, cpu.about()))
    name = f"attend-{hashlib.sha256(about.encode()).hexdigest()[:16]}.so"
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ref_dsinfer"
    built = folder / name
    if not built.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as making:
            unit, whole = Path(making, "attend.o"), Path(making, "attend.so")
            # Linked without OpenMP's library: torch has loaded its own, and two would fight.
            for words in (
                (*FLAGS, "-c", str(SOURCE), "-o", str(unit)),
                ("-shared", str(unit), "-o", str(whole)),
            ):
                subprocess.run([compiler, *words], check=True, capture_output=True)
            whole.replace(built)
    return built
