"""The Triton kernels without a GPU: what they compute, and that they compile for Hopper."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="needs triton")


def run(module: str, **variables: str) -> None:
    environment = {**os.environ, **variables}
    ended = subprocess.run(
        [sys.executable, "-m", module],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_kernels_compute_their_definitions_in_the_interpreter() -> None:
    run("tests.ref_dsinfer.kernel_checks", TRITON_INTERPRET="1")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_kernels_compile_for_hopper_and_fit_it() -> None:
    run("tests.ref_dsinfer.kernel_builds", TRITON_INTERPRET="0")
