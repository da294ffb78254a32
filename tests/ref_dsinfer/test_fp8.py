import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file, save_file

from errors import UsageError
from ref_dsinfer import fp8, fp8_format
from ref_dsinfer.layers import Linear

if TYPE_CHECKING:
    from tests.ref_dsinfer.conftest import Bench


@pytest.mark.parametrize(
    ("shape", "scales"),
    [
        ((128, 128), (1, 1)),
        ((576, 256), (5, 2)),
        ((1, 1), (1, 1)),
        ((129, 127), (2, 1)),
        ((3, 2, 130, 300), (3, 2, 2, 3)),
    ],
)
def test_what_is_quantised_comes_back_within_half_a_step(
    shape: tuple[int, ...], scales: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    weight = torch.randn(shape)
    values, scale = fp8_format.quantise(weight)
    assert (values.dtype, values.shape) == (torch.float8_e4m3fn, shape)
    assert (scale.dtype, tuple(scale.shape)) == (torch.float32, scales)
    back = fp8_format.dequantise(values, scale, torch.float32)
    # 3 bits of mantissa: half a step is 1/16 of the value, or of the smallest normal one.
    smallest = scale.amax() * 2**-6
    assert ((back - weight).abs() <= weight.abs().clamp(min=smallest) / 16 * 1.001).all()
    assert torch.equal(
        values, fp8_format.quantise(back)[0]
    )  # values that fp8 can represent stay exact


def test_the_scale_multiplies_and_each_block_has_its_own() -> None:
    weight = torch.ones(256, 130)
    weight[128:] = 1000.0
    weight[:, 128:] *= 0.01
    values, scale = fp8_format.quantise(weight)
    expected = torch.tensor([[1.0, 0.01], [1000.0, 10.0]]) / 448
    torch.testing.assert_close(scale, expected)
    assert values.float().unique().tolist() == [448.0]
    torch.testing.assert_close(fp8_format.dequantise(values, scale, torch.float32), weight)


def test_a_block_of_zeros_stays_zero() -> None:
    values, scale = fp8_format.quantise(torch.zeros(128, 256))
    assert scale.isfinite().all()
    assert (scale > 0).all()
    assert not fp8_format.dequantise(values, scale, torch.bfloat16).any()


def test_a_linear_dequantises_before_its_product() -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(200, 300), torch.randn(4, 300).bfloat16()
    linear = Linear(200, 300, dtype=torch.bfloat16, quantised=True)
    values, scale = fp8_format.quantise(weight)
    assert linear.weight_scale_inv is not None
    linear.weight.data, linear.weight_scale_inv.data = values, scale
    expected = x @ fp8_format.dequantise(values, scale, torch.bfloat16).T
    assert torch.equal(linear(x), expected)


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory: pytest.TempPathFactory, write_model: Callable[..., Path]) -> Path:
    """A model with partial blocks, in more than one file."""
    from transformers import DeepseekV3ForCausalLM

    path = write_model(
        tmp_path_factory.mktemp("wide") / "hf",
        hidden_size=160,
        intermediate_size=200,
        moe_intermediate_size=136,
        kv_lora_rank=144,
        initializer_range=0.05,
    )
    model = DeepseekV3ForCausalLM.from_pretrained(path)
    (path / "model.safetensors").unlink()
    model.save_pretrained(path, max_shard_size="1MB")
    assert len(list(path.glob("*.safetensors"))) > 1
    return path


def logits_of(path: Path, bench: "type[Bench]") -> torch.Tensor:
    model = bench(path, tuple(range(2, 40)))
    return torch.stack([model.step(), model.step(5)])


def all_tensors(path: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for file in path.glob("*.safetensors"):
        tensors |= load_file(file)
    return tensors


@pytest.mark.slow
def test_a_twin_computes_what_its_dequantised_weights_compute(
    wide_model: Path, tmp_path: Path, bench: "type[Bench]"
) -> None:
    twin, plain = tmp_path / "twin", tmp_path / "plain"
    command = [sys.executable, "-m", "ref_dsinfer.fp8"]
    paths = ["--model-path", str(wide_model), "--output-path", str(twin)]
    subprocess.run([*command, *paths], check=True, timeout=100)
    tensors = all_tensors(twin)
    scaled = {name for name in tensors if name.endswith("_scale_inv")}
    quantised = {name.removesuffix("_scale_inv") for name in scaled}
    assert quantised == {n for n, t in tensors.items() if t.dtype == torch.float8_e4m3fn}
    kept = {name.rsplit(".", 2)[-2] for name in tensors.keys() - quantised - scaled}
    assert {"embed_tokens", "lm_head", "gate", "kv_a_layernorm", "norm"} <= kept
    assert not any("proj" in name for name in kept)
    index = json.loads((twin / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == tensors.keys()

    plain.mkdir()
    dequantised = {
        name: fp8_format.dequantise(
            tensor, tensors[f"{name}_scale_inv"], torch.float32
        ).contiguous()
        if name in quantised
        else tensor
        for name, tensor in tensors.items()
        if name not in scaled
    }
    save_file(dequantised, plain / "model.safetensors", {"format": "pt"})
    (plain / "config.json").write_text((wide_model / "config.json").read_text())
    torch.testing.assert_close(logits_of(twin, bench), logits_of(plain, bench), rtol=0, atol=1e-5)
    lost = (logits_of(twin, bench) - logits_of(wide_model, bench)).abs().max()
    assert 1e-3 < lost < 1.0


@pytest.mark.slow
def test_a_twin_is_not_quantised_again_or_written_over_its_source(
    wide_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="source itself"):
        fp8.write_twin(wide_model, wide_model)
    fp8.write_twin(wide_model, tmp_path / "twin")
    with pytest.raises(UsageError, match="already"):
        fp8.write_twin(tmp_path / "twin", tmp_path / "again")
