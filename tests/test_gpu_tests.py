"""The tests in tests/gpu, run on a CPU that answers for a CUDA device: what they call exists."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Left out: Triton's kernels (test_kernels.py runs their checks in the interpreter), the bundled
# model, which takes minutes, what needs a GPU's memory, and fp8, which differs in kernels only.
CHOSEN = "not test_kernels and not bundled and not cache_takes and not fp8"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(find_spec("triton") is None, reason="needs triton")
def test_they_pass_on_a_cpu_that_stands_in() -> None:
    words = ["-p", "tests.cuda_on_cpu", "tests/gpu", "-q", "-p", "no:cacheprovider", "-k", CHOSEN]
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", *words],
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout
    # Those that need two GPUs are skipped.
    assert re.search(r"^14 passed, 4 skipped", ended.stdout, re.MULTILINE), ended.stdout
