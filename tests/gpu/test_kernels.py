"""The Triton kernels against their definitions, in the dtypes that they are used with."""

from importlib.util import find_spec

import pytest
import torch

from ref_dsinfer.gemm import Arithmetic

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

if torch.cuda.is_available() and find_spec("triton"):
    from tests.ref_dsinfer import kernel_checks as checks

DTYPES = [torch.bfloat16, torch.float32]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("arithmetic", ["bf16", "fp8"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_products(dtype: torch.dtype, arithmetic: Arithmetic) -> None:
    checks.check_products("cuda", dtype, arithmetic)


@pytest.mark.parametrize("arithmetic", ["bf16", "fp8"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_groups(dtype: torch.dtype, arithmetic: Arithmetic) -> None:
    checks.check_groups("cuda", dtype, arithmetic)


@pytest.mark.parametrize("dtype", DTYPES)
def test_groups_without_scales(dtype: torch.dtype) -> None:
    checks.check_unscaled_groups("cuda", dtype)


def test_rounding_of_activations() -> None:
    checks.check_rounding("cuda", exact=True)


def test_routing() -> None:
    checks.check_routing("cuda")


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_surrounds_the_experts(dtype: torch.dtype) -> None:
    checks.check_experts("cuda", dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_norms_rotations_and_cache_writes(dtype: torch.dtype) -> None:
    checks.check_fused("cuda", dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_attention(dtype: torch.dtype) -> None:
    checks.check_attention("cuda", dtype)
