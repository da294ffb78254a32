import platform
import subprocess
import sys

import pytest
import torch

from ref_dsinfer.cpu import about, dtype_for

# Pages that a thread touches for the first time, while it makes and drops a tensor again and again,
# as an engine's thread does; one above the 32 MiB up to which glibc keeps memory by itself.
FAULTS = """
import resource, sys, threading, torch
from ref_dsinfer.cpu import keep_freed_memory

SIZE = (8 << 20) + 1024

def steps():
    def faults():
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(16):
        torch.ones(SIZE)
    before = faults()
    for _ in range(16):
        torch.ones(SIZE)
    print(faults() - before)

if sys.argv[1] == "kept":
    keep_freed_memory()
thread = threading.Thread(target=steps)
thread.start()
thread.join()
"""


def test_auto_is_bfloat16_only_where_torch_can_multiply_it() -> None:
    can = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert dtype_for("auto", "cpu") == ("bfloat16" if can else "float32")
    assert dtype_for("auto", "cuda") == "bfloat16"


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_explicit_options_are_used(dtype: str) -> None:
    assert dtype_for(dtype, "cpu") == dtype_for(dtype, "cuda") == dtype


def test_about_describes_the_processor() -> None:
    assert about() == about() != ""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has mallopt")
def test_freed_memory_is_kept() -> None:
    def faults(how: str) -> int:
        words = [sys.executable, "-c", FAULTS, how]
        return int(subprocess.run(words, capture_output=True, text=True, check=True).stdout)

    assert faults("kept") < faults("not kept") / 4
