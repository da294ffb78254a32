import pytest
import torch

from ref_dsinfer.cpu import about, dtype_for


def test_auto_is_bfloat16_only_where_torch_can_multiply_it() -> None:
    can = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert dtype_for("auto", "cpu") == ("bfloat16" if can else "float32")
    assert dtype_for("auto", "cuda") == "bfloat16"


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_explicit_options_are_used(dtype: str) -> None:
    assert dtype_for(dtype, "cpu") == dtype_for(dtype, "cuda") == dtype


def test_about_describes_the_processor() -> None:
    assert about() == about() != ""
