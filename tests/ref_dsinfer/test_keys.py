"""No relevant key of config.json is ignored: each is honoured, or other values are refused.

`test_model.py` compares the numerical effect of honoured keys with transformers.
"""

import dataclasses
import inspect
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from errors import ModelError
from ref_dsinfer import keys, rope
from ref_dsinfer.config import ModelConfig
from tests.ref_dsinfer.conftest import SHAPE

# What DeepSeek's own config.json has, and transformers' class has not.
HUB = {
    *("aux_loss_alpha", "auto_map", "ep_size", "moe_layer_freq", "num_nextn_predict_layers"),
    *("quantization_config", "rope_scaling", "rope_theta", "scoring_func", "seq_aux"),
    *("topk_method", "torch_dtype"),
}
# Set after the class's own fields, or looked for on a configuration that may lack them.
LOOSE = {"is_causal", "per_layer_config", "partial_rotary_factor", "tie_last_hidden_states"}
# Of rope parameters of types that are refused as a whole.
OTHER_ROPE = {"short_factor", "long_factor", "low_freq_factor", "high_freq_factor"}

YARN = {"type": "yarn", "factor": 16, "original_max_position_embeddings": 32}
FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
NOT_IN_BASE = ("initializer_range", "num_key_value_heads", "num_nextn_predict_layers")
BASE = {
    **{key: value for key, value in SHAPE.items() if key not in NOT_IN_BASE},
    "architectures": ["DeepseekV3ForCausalLM"],
    "num_hidden_layers": 2,
    "rope_scaling": YARN,
}
# For each key that is honoured, values that make another model of it.
OTHERS: dict[str, tuple[Any, ...]] = {
    "architectures": (["LlamaForCausalLM"],),
    "first_k_dense_replace": (0,),
    "hidden_size": (128,),
    "intermediate_size": (128,),
    "kv_lora_rank": (32,),
    "max_position_embeddings": (128,),
    "moe_intermediate_size": (64,),
    "n_group": (2,),
    "n_routed_experts": (16,),
    "n_shared_experts": (1,),
    "norm_topk_prob": (False,),
    "num_attention_heads": (8,),
    "num_experts_per_tok": (3,),
    "num_hidden_layers": (3,),
    "num_mtp_layers": (1,),
    "num_nextn_predict_layers": (1,),
    "original_max_position_embeddings": (64,),
    "q_lora_rank": (None, 16),
    "qk_nope_head_dim": (32,),
    "qk_rope_head_dim": (8,),
    "quantization_config": (FP8, FP8 | {"scale_fmt": "ue8m0"}),
    "rms_norm_eps": (1e-5,),
    "rope_parameters": ({"rope_type": "default"},),  # beside another rope_scaling
    "rope_scaling": (
        None,
        *(
            YARN | {key: value}
            for key, value in {
                "attention_factor": 0.8,
                "beta_fast": 16,
                "beta_slow": 2,
                "factor": 8,
                "mscale": 0.7,
                "mscale_all_dim": 0.7,
                "original_max_position_embeddings": 64,
                "rope_theta": 5000,
                "truncate": False,
            }.items()
        ),
    ),
    "rope_theta": (5000,),
    "routed_scaling_factor": (1.0,),
    "scoring_func": ("softmax",),
    "topk_group": (1,),
    "topk_method": ("group_limited_greedy",),
    "v_head_dim": (24,),
    "vocab_size": (128,),
}
REFUSED: dict[str, tuple[Any, ...]] = {
    "attention_bias": (True,),
    "hidden_act": ("gelu", None),
    "is_causal": (False, None),
    "is_encoder_decoder": (True,),
    "mlp_bias": (True,),
    "moe_layer_freq": (2, [0, 1], None),
    "partial_rotary_factor": (0.5,),
    "per_layer_config": ({"0": {"rms_norm_eps": 1e-5}},),
    "rope_interleave": (False, None),
    "tie_word_embeddings": (True,),
    "head_dim": (40,),
    "num_key_value_heads": (1,),
    "num_local_experts": (4,),
    "qk_head_dim": (16,),
    "norm_topk_prob": ("no",),
    "scoring_func": ("relu", None),
    "topk_method": ("greedy", None),
    "n_group": (0, "4", 4.0),
    "rms_norm_eps": ("1e-6", float("nan"), None),
    "routed_scaling_factor": (True, float("inf"), None),
    "rope_theta": (1, 0, "10000"),
    "rope_scaling": (
        "yarn",
        {"type": "linear", "factor": 2},
        {"rope_type": None},
        {"full_attention": YARN, "sliding_attention": {"type": "default"}},
        {"type": "default", "factor": 4},
        YARN | {"partial_rotary_factor": 0.5},
        YARN | {"attention_factor": "0.8"},
        YARN | {"beta_fast": -1},
        YARN | {"factor": 0},
        YARN | {"factor": None},
        YARN | {"finetuned": True},
        YARN | {"mscale": [1.0]},
        YARN | {"original_max_position_embeddings": 0.5},
        YARN | {"truncate": "no"},
    ),
    "quantization_config": (
        "fp8",
        FP8 | {"activation_scheme": "static"},
        FP8 | {"fmt": "e5m2"},
        FP8 | {"kv_cache_scheme": {}},
        FP8 | {"ignored_layers": ["self_attn.o_proj"]},
        FP8 | {"modules_to_convert": ["lm_head"]},
        FP8 | {"modules_to_not_convert": ["lm_head", "model.layers.1.mlp"]},
        FP8 | {"modules_to_not_convert": ["["]},
        FP8 | {"quant_method": "awq"},
        FP8 | {"scale_fmt": "e5m2"},
        FP8 | {"weight_block_size": [64, 64]},
        FP8 | {"weight_block_size": None},
    ),
}
# For each key that has no effect, another value than transformers' default.
MEANINGLESS: dict[str, Any] = {
    "_name_or_path": "x",
    "attention_dropout": 0.5,
    "aux_loss_alpha": 0.1,
    "auto_map": {},
    "bos_token_id": 7,
    "chunk_size_feed_forward": 2,
    "dtype": "float16",
    "eos_token_id": [3, 4],
    "ep_size": 8,
    "id2label": {"0": "x"},
    "initializer_range": 0.5,
    "label2id": {"x": 0},
    "model_type": "kimi_k2",
    "output_attentions": True,
    "output_hidden_states": True,
    "output_router_logits": True,
    "pad_token_id": 5,
    "pretraining_tp": 4,
    "problem_type": "regression",
    "return_dict": False,
    "seq_aux": True,
    "tie_last_hidden_states": False,
    "torch_dtype": "float16",
    "transformers_version": "4.0",
    "use_cache": False,
}


def read(folder: Path, **changes: object) -> ModelConfig:
    (folder / "config.json").write_text(json.dumps(BASE | changes))
    return ModelConfig.read(folder)


def test_every_key_is_honoured_refused_or_without_effect(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from transformers import DeepseekV3Config, FineGrainedFP8Config
    from transformers.modeling_rope_utils import RopeParameters

    theirs = {field.name for field in dataclasses.fields(DeepseekV3Config)}
    theirs |= DeepseekV3Config().to_dict().keys() | DeepseekV3Config.attribute_map.keys()
    assert theirs | HUB | LOOSE <= keys.KNOWN
    ropes = {*keys.ROPE["yarn"], *keys.ROPE_TYPE, "partial_rotary_factor"}
    assert ropes >= RopeParameters.__annotations__.keys() - OTHER_ROPE
    quantised = set(inspect.signature(FineGrainedFP8Config).parameters) - {"kwargs"}
    assert {*keys.QUANTIZATION, *keys.UNCONVERTED} >= quantised

    assert OTHERS.keys() == keys.HONOURED
    assert REFUSED.keys() >= keys.FIXED.keys() | keys.DERIVED.keys()
    assert MEANINGLESS.keys() == keys.WITHOUT_EFFECT
    base = read(tmp_path)
    for key, values in OTHERS.items():
        for value in values:
            try:
                assert read(tmp_path, **{key: value}) != base, (key, value)
            except ModelError:  # of two keys that contradict each other, and another architecture
                assert key in ("architectures", "rope_parameters")
    for key, values in REFUSED.items():
        for value in values:
            with pytest.raises(ModelError) as caught:
                read(tmp_path, **{key: value})
            message = str(caught.value)
            assert message.startswith(f"{tmp_path}/config.json: "), message
            named = {key, *value} if isinstance(value, dict) else {key}
            assert any(one in message for one in named), message
    for key in keys.FIXED:
        for value in keys.FIXED[key]:
            assert read(tmp_path, **{key: value}) == base, key
    with caplog.at_level(logging.WARNING):
        assert read(tmp_path, **MEANINGLESS) == base
        assert not caplog.records
        read(tmp_path, sliding_window=128)
    assert "'sliding_window'" in caplog.text


def test_what_has_no_effect_here_has_none_in_transformers() -> None:
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    def peer(**changes: object) -> DeepseekV3ForCausalLM:
        shape = {key: value for key, value in BASE.items() if key != "architectures"}
        return DeepseekV3ForCausalLM(DeepseekV3Config(**shape | changes)).eval()

    base = peer(initializer_range=0.2)
    tokens = torch.arange(40)[None]
    for key, value in MEANINGLESS.items():
        if key not in ("dtype", "torch_dtype", "model_type", "return_dict"):  # form, not numbers
            other = peer(**{key: value})
            other.load_state_dict(base.state_dict())
            with torch.no_grad():
                assert torch.equal(other(tokens).logits, base(tokens).logits), key


ROPES: tuple[dict[str, Any], ...] = (
    {},
    {"mscale": 1.0, "mscale_all_dim": 1.0},
    {"mscale": 0.7, "mscale_all_dim": 1.0},
    {"mscale": 0.7},
    {"mscale_all_dim": 0.7},
    {"mscale": 0, "mscale_all_dim": 0.7},
    {"attention_factor": 0.8},
    {"attention_factor": 1, "mscale": 0.7, "mscale_all_dim": 1.2},
    {"attention_factor": 0.0},
    {"truncate": False},
    {"truncate": False, "attention_factor": 0.8, "beta_fast": 8, "beta_slow": 2},
    {"beta_fast": 0, "beta_slow": None},
    {"beta_fast": 1, "beta_slow": 32},
    {"original_max_position_embeddings": 4},
    {"original_max_position_embeddings": 4, "truncate": False},
    {"factor": 0.5, "mscale_all_dim": 1.0},
    {"rope_theta": 500.0},
    {"partial_rotary_factor": 1.0},
)


@pytest.mark.parametrize("more", ROPES, ids=str)
def test_rotations_and_softmax_scale_are_those_of_transformers(
    more: dict[str, Any], tmp_path: Path
) -> None:
    from transformers import DeepseekV3Config
    from transformers.models.deepseek_v3 import modeling_deepseek_v3 as theirs

    scaling = YARN | more
    ours = read(tmp_path, rope_scaling=scaling)
    shape = {key: value for key, value in BASE.items() if key != "architectures"}
    config = DeepseekV3Config(**shape | {"rope_scaling": dict(scaling)})
    positions = torch.arange(300)
    cos, sin = theirs.DeepseekV3RotaryEmbedding(config)(torch.zeros(1), positions[None])
    expected = torch.complex(cos, sin)[0, :, : ours.rope_dim // 2]
    torch.testing.assert_close(rope.table(ours, 300), expected, rtol=0, atol=5e-5)
    attention = theirs.DeepseekV3Attention(config, 0)
    assert ours.softmax_scale == pytest.approx(attention.scaling, rel=1e-9)


def test_absent_keys_mean_what_they_mean_to_transformers(tmp_path: Path) -> None:
    from transformers import DeepseekV3Config

    theirs = DeepseekV3Config()
    absent = ("n_group", "topk_group", "q_lora_rank", "rope_scaling")
    kept = {key: value for key, value in BASE.items() if key not in absent}
    (tmp_path / "config.json").write_text(json.dumps(kept))
    ours = ModelConfig.read(tmp_path)
    assert (ours.groups, ours.kept_groups) == (theirs.n_group, theirs.topk_group)
    assert (ours.q_lora, ours.eps) == (theirs.q_lora_rank, theirs.rms_norm_eps)
    assert ours.routed_scale == theirs.routed_scaling_factor
    assert ours.normalise_weights == theirs.norm_topk_prob
    assert (ours.rope_theta, ours.yarn) == (theirs.rope_parameters["rope_theta"], None)
