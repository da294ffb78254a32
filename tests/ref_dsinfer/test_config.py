import json
from pathlib import Path
from typing import Any

import pytest
import torch

from errors import ModelError
from ref_dsinfer import rope
from ref_dsinfer.config import ModelConfig

R1: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "vocab_size": 129280,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "first_k_dense_replace": 3,
    "num_attention_heads": 128,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "n_group": 8,
    "topk_group": 4,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "max_position_embeddings": 163840,
    "rope_theta": 10000,
    "rope_scaling": {
        "type": "yarn",
        "factor": 40,
        "original_max_position_embeddings": 4096,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    },
    "quantization_config": {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
    },
}


def read(path: Path, **changes: object) -> ModelConfig:
    """R1's configuration with some keys changed; a key of value None stays out."""
    raw = {key: value for key, value in (R1 | changes).items() if value is not None}
    (path / "config.json").write_text(json.dumps(raw))
    return ModelConfig.read(path)


def test_r1_has_the_published_softmax_scale_and_ramp(tmp_path: Path) -> None:
    config = read(tmp_path)
    assert config.softmax_scale == pytest.approx(0.135234, abs=1e-6)
    assert config.latent_dim == 576
    assert config.fp8
    plain = rope.frequencies(read(tmp_path, rope_scaling=None))
    ratio = plain / rope.frequencies(config)
    assert [i for i in range(32) if 1 < ratio[i] < 39.9] == list(range(11, 23))
    torch.testing.assert_close(ratio[:11], torch.ones(11))
    torch.testing.assert_close(ratio[23:], torch.full((9,), 40.0))


def test_rotations_have_length_one_with_r1s_scaling_and_another_with_uneven_mscale(
    tmp_path: Path,
) -> None:
    torch.testing.assert_close(rope.table(read(tmp_path), 50).abs(), torch.ones(50, 32))
    uneven = R1["rope_scaling"] | {"mscale": 0.5}
    magnitude = rope.table(read(tmp_path, rope_scaling=uneven), 2).abs()
    torch.testing.assert_close(magnitude, torch.full((2, 32), 1.1844440 / 1.3688879))


def test_rotation_turns_neighbouring_pairs() -> None:
    quarter = torch.tensor([1j, 1.0], dtype=torch.complex64)
    turned = rope.plain_rotate(torch.tensor([1.0, 2.0, 3.0, 4.0]), quarter)
    assert turned.tolist() == [-2.0, 1.0, 3.0, 4.0]


def test_rope_parameters_of_transformers_5_mean_the_same(tmp_path: Path) -> None:
    scaling = dict(R1["rope_scaling"])
    scaling["rope_type"] = scaling.pop("type")
    new = read(
        tmp_path,
        rope_scaling=None,
        rope_theta=None,
        rope_parameters=scaling | {"rope_theta": 10000},
    )
    assert new == read(tmp_path)
    both = scaling | {"rope_theta": 10000}
    assert read(tmp_path, rope_parameters=both) == new
    with pytest.raises(ModelError, match="rope_parameters and rope_scaling contradict each other"):
        read(tmp_path, rope_parameters=both | {"factor": 4})


def test_v2_routing_has_no_bias(tmp_path: Path) -> None:
    v2 = read(tmp_path, topk_method="group_limited_greedy", scoring_func="softmax")
    assert (v2.routing_bias, v2.scoring) == (False, "softmax")
    assert read(tmp_path, topk_method=None, scoring_func=None).routing_bias


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, "LlamaForCausalLM"),
        ({"architectures": None}, "no architecture"),
        ({"kv_lora_rank": None}, "'kv_lora_rank' is missing"),
        ({"hidden_size": "7168"}, "hidden_size is '7168'"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "rope_scaling's type is 'linear'"),
        ({"rope_scaling": {"type": "yarn", "factor": 2}}, "original_max_position_embeddings"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config"),
        ({"scoring_func": "relu"}, "scoring_func"),
        ({"n_group": 3}, "256 experts in 3 groups"),
        ({"num_experts_per_tok": 129}, "129 active experts"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_refused(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        read(tmp_path, **changes)
    assert "config.json" in str(caught.value)


@pytest.mark.parametrize("text", ["", "[1]", '"x"', "{", "\x00"])
def test_a_file_that_is_not_a_configuration_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"config\.json"):
        ModelConfig.read(tmp_path)


def test_a_directory_without_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        ModelConfig.read(tmp_path / "nowhere")
