"""Weights' names in files that DeepSeek's own `inference/convert.py` writes, and Hugging Face's.

The files themselves are those of `ref_dsinfer.convert`: one a rank, weights and experts split along
the same dimensions, so that the names are all that differs.
"""

import re

DEEPSEEKS = re.compile(r"(embed|head|norm|layers\.\d+)\.")
WORDS = {
    "embed": "embed_tokens",
    "head": "lm_head",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn": "self_attn",
    "wq": "q_proj",
    "wq_a": "q_a_proj",
    "q_norm": "q_a_layernorm",
    "wq_b": "q_b_proj",
    "wkv_a": "kv_a_proj_with_mqa",
    "kv_norm": "kv_a_layernorm",
    "wkv_b": "kv_b_proj",
    "wo": "o_proj",
    "ffn": "mlp",
    "w1": "gate_proj",
    "w2": "down_proj",
    "w3": "up_proj",
    "scale": "weight_scale_inv",
    "bias": "e_score_correction_bias",  # the gate's: nothing else has one
}


def is_deepseeks(name: str) -> bool:
    """Whether a tensor's name is one of DeepSeek's."""
    return DEEPSEEKS.match(name) is not None


def hugging_face_name(name: str) -> str:
    """A tensor's name in Hugging Face's words, which it may be in already."""
    if not is_deepseeks(name):
        return name
    name = ".".join(WORDS.get(word, word) for word in name.split("."))
    return name if name.startswith("lm_head.") else f"model.{name}"
