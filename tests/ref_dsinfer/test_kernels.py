"""The Triton kernels without a GPU: what they compute, and that they compile for GPUs and fit
them."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="needs triton")


def run(module: str, *arguments: str, timeout: int = 280, **variables: str) -> None:
    environment = {**os.environ, **variables}
    ended = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_kernels_compute_their_definitions_in_the_interpreter() -> None:
    run("tests.ref_dsinfer.kernel_checks", TRITON_INTERPRET="1")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_kernels_at_the_widths_of_r1_and_beyond_32_bits() -> None:
    run("tests.ref_dsinfer.kernel_widths", timeout=580, TRITON_INTERPRET="1")


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_layer_of_kernels_computes_the_plain_layer() -> None:
    run("tests.ref_dsinfer.kernel_layers", timeout=100, TRITON_INTERPRET="1")


@pytest.mark.slow
@pytest.mark.timeout(1300)
def test_all_variants_fit_hopper_and_blackwell() -> None:
    run("tests.ref_dsinfer.kernel_builds", timeout=1200, TRITON_INTERPRET="0")
