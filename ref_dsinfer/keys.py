"""The keys of a model's config.json, and what this engine does with each.

Every key of transformers' DeepseekV3Config and of DeepSeek's own files is in one table here. A
value that the model has no code for is refused, rather than answered with another model's numbers.
Other keys are named in a warning; in `rope_scaling` and `quantization_config`, where every key
changes the arithmetic, they are refused.
"""

from typing import Any

HONOURED = frozenset(
    {
        "architectures",
        "first_k_dense_replace",
        "hidden_size",
        "intermediate_size",
        "kv_lora_rank",
        "max_position_embeddings",
        "moe_intermediate_size",
        "n_group",
        "n_routed_experts",
        "n_shared_experts",
        "norm_topk_prob",
        "num_attention_heads",
        "num_experts_per_tok",
        "num_hidden_layers",
        "num_mtp_layers",
        "num_nextn_predict_layers",
        "original_max_position_embeddings",
        "q_lora_rank",
        "qk_nope_head_dim",
        "qk_rope_head_dim",
        "quantization_config",
        "rms_norm_eps",
        "rope_parameters",
        "rope_scaling",
        "rope_theta",
        "routed_scaling_factor",
        "scoring_func",
        "topk_group",
        "topk_method",
        "v_head_dim",
        "vocab_size",
    }
)
# Values that mean what is computed here, as an absent key does.
FIXED: dict[str, tuple[Any, ...]] = {
    "attention_bias": (False, None),
    "hidden_act": ("silu", "swish"),
    "is_causal": (True,),
    "is_encoder_decoder": (False, None),
    "mlp_bias": (False, None),
    "moe_layer_freq": (1,),
    "partial_rotary_factor": (1, None),
    "per_layer_config": (None, {}),
    "rope_interleave": (True,),
    "tie_word_embeddings": (False, None),
}
# Sizes that follow from others and may be stated too: they must agree.
DERIVED: dict[str, tuple[str, ...]] = {
    "head_dim": ("qk_rope_head_dim",),  # transformers' name of what it rotates
    "num_key_value_heads": ("num_attention_heads",),
    "num_local_experts": ("n_routed_experts",),
    "qk_head_dim": ("qk_nope_head_dim", "qk_rope_head_dim"),
}
WITHOUT_EFFECT = frozenset(
    {
        # of training, or what a call of transformers' model returns
        "attention_dropout",
        "aux_loss_alpha",
        "id2label",
        "initializer_range",
        "label2id",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "problem_type",
        "return_dict",
        "seq_aux",
        "tie_last_hidden_states",
        # how others compute the same, or where the model came from
        "_name_or_path",
        "auto_map",
        "chunk_size_feed_forward",  # read by no layer of this architecture
        "ep_size",
        "model_type",
        "pretraining_tp",
        "transformers_version",
        "use_cache",
        # set elsewhere: by --dtype, the tokenizer and generation_config.json
        "bos_token_id",
        "dtype",
        "eos_token_id",
        "pad_token_id",
        "torch_dtype",
    }
)
KNOWN = HONOURED | FIXED.keys() | DERIVED.keys() | WITHOUT_EFFECT

# Of `rope_parameters` or `rope_scaling`, by type; FIXED holds here as well.
ROPE: dict[str, frozenset[str]] = {
    "default": frozenset({"rope_theta"}),
    "yarn": frozenset(
        {
            "attention_factor",
            "beta_fast",
            "beta_slow",
            "factor",
            "mscale",
            "mscale_all_dim",
            "original_max_position_embeddings",
            "rope_theta",
            "truncate",
        }
    ),
}
ROPE_TYPE = ("rope_type", "type")

FP8_BLOCK = 128  # rows and columns that share one scale
# Of `quantization_config`, as DeepSeek publishes its weights. None stands for an absent key.
QUANTIZATION: dict[str, tuple[Any, ...]] = {
    "activation_scheme": ("dynamic", None),
    "dequantize": (False, True, None),  # the same numbers, in more memory
    "fmt": ("e4m3", None),
    "modules_to_convert": (None, []),
    "quant_method": ("fp8",),
    "scale_fmt": ("float", "ue8m0", None),  # ue8m0: of activations, powers of two
    "weight_block_size": ([FP8_BLOCK, FP8_BLOCK],),
}
UNCONVERTED = ("modules_to_not_convert", "ignored_layers")  # lists of modules' names or patterns

# As in DeepSeek's own files.
QUANTIZATION_CONFIG = {
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "quant_method": "fp8",
    "weight_block_size": [FP8_BLOCK, FP8_BLOCK],
}
