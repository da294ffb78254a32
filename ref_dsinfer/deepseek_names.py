"""Weight names of DeepSeek's own `inference/convert.py`, and Hugging Face's names for them.

Its files differ from those of `ref_dsinfer.convert` in the names alone: one file a rank, with
weights and experts split along the same dimensions.
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
    """Whether a tensor has a name of DeepSeek's."""
    return DEEPSEEKS.match(name) is not None


def hugging_face_name(name: str) -> str:
    """Hugging Face's name of a tensor; a name that is one already stays as it is."""
    if not is_deepseeks(name):
        return name
    name = ".".join(WORDS.get(word, word) for word in name.split("."))
    return name if name.startswith("lm_head.") else f"model.{name}"
