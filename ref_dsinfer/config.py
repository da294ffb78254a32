"""What `config.json` says about a DeepSeek-V3 model, checked once and then trusted."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ref_dsinfer.errors import ModelError

ARCHITECTURE = "DeepseekV3ForCausalLM"
FP8_BLOCK = 128  # rows and columns that share one scale

# Values this model has no code for: refusing them beats answering with another model's numbers.
FIXED = {
    "hidden_act": "silu",
    "attention_bias": False,
    "tie_word_embeddings": False,
    "rope_interleave": True,
    "moe_layer_freq": 1,
}


@dataclass(frozen=True)
class Yarn:
    """Stretches rotary positions beyond the length a model was first trained on."""

    factor: float
    original_length: int  # tokens
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 1.0
    mscale_all_dim: float = 0.0

    def magnitude(self, mscale: float) -> float:
        """YaRN's attention temperature for this factor."""
        return 0.1 * mscale * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0


@dataclass(frozen=True)
class ModelConfig:
    """The shape of one model. Sizes are those of the whole model, not of one rank's part."""

    vocab_size: int
    hidden: int
    dense_intermediate: int
    expert_intermediate: int
    layers: int  # MTP layers not counted
    dense_layers: int  # the first ones, without experts
    heads: int
    q_lora: int | None  # None: queries come straight from the hidden state
    kv_lora: int
    nope_dim: int  # of a head's query and key, not rotated
    rope_dim: int  # of a head's query, and of the one key all heads share, rotated
    v_dim: int
    experts: int
    shared_experts: int
    active_experts: int  # a token
    groups: int
    kept_groups: int
    routed_scale: float
    scoring: Literal["sigmoid", "softmax"]
    routing_bias: bool  # V3; without it (V2) a group scores by its best expert, not its best two
    normalise_weights: bool
    eps: float
    rope_theta: float
    yarn: Yarn | None
    max_positions: int  # tokens
    fp8: bool  # linear weights are block-fp8
    mtp: bool = False  # one more layer behind the others drafts tokens

    @property
    def latent_dim(self) -> int:
        """Values the cache keeps a token and layer: the latent, then the rotated key."""
        return self.kv_lora + self.rope_dim

    @property
    def cached_layers(self) -> int:
        """Layers that keep latents."""
        return self.layers + self.mtp

    @property
    def softmax_scale(self) -> float:
        """What attention scores are multiplied by; YaRN's temperature belongs here."""
        scale = (self.nope_dim + self.rope_dim) ** -0.5
        if self.yarn:
            scale *= self.yarn.magnitude(self.yarn.mscale_all_dim) ** 2
        return scale

    @classmethod
    def read(cls, model_dir: Path) -> "ModelConfig":
        """Read `model_dir/config.json`, in the hub's own keys or in those transformers 5 writes.

        Errors: ModelError if it is missing, unreadable, of another architecture, or inconsistent.
        """
        path = model_dir / "config.json"
        if not path.is_file():
            raise ModelError(f"{path} does not exist: --model must name a Hugging Face directory")
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ModelError(f"{path} can't be read as JSON: {error}") from error
        architectures = raw.get("architectures") if isinstance(raw, dict) else None
        if not isinstance(architectures, list) or ARCHITECTURE not in architectures:
            raise ModelError(
                f"{path} describes {architectures or 'no architecture'}, not {ARCHITECTURE}"
            )
        try:
            config = _parse(raw)
        except KeyError as error:
            raise ModelError(f"{path} lacks {error.args[0]!r}") from error
        except (TypeError, ValueError) as error:
            raise ModelError(f"{path} can't be used: {error}") from error
        return config


def _parse(raw: dict[str, Any]) -> ModelConfig:
    """Turn the file's keys into ours. Errors: KeyError for a missing key, else ValueError."""

    def count(key: str, least: int = 1) -> int:
        value = raw[key]
        if type(value) is not int or value < least:
            raise ValueError(f"{key} is {value!r}, not a whole number from {least} on")
        return value

    for key, expected in FIXED.items():
        if raw.get(key, expected) != expected:
            raise ValueError(f"{key} is {raw[key]!r}; only {expected!r} is supported")
    theta, yarn = _rope(raw)
    scoring = raw.get("scoring_func", "sigmoid")
    method = raw.get("topk_method", "noaux_tc")
    if scoring not in ("sigmoid", "softmax"):
        raise ValueError(f"scoring_func is {scoring!r}; sigmoid and softmax are supported")
    if method not in ("noaux_tc", "group_limited_greedy"):
        raise ValueError(f"topk_method is {method!r}; noaux_tc and group_limited_greedy are known")
    config = ModelConfig(
        vocab_size=count("vocab_size"),
        hidden=count("hidden_size"),
        dense_intermediate=count("intermediate_size"),
        expert_intermediate=count("moe_intermediate_size"),
        layers=count("num_hidden_layers"),
        dense_layers=count("first_k_dense_replace", 0),
        heads=count("num_attention_heads"),
        q_lora=None if raw.get("q_lora_rank") is None else count("q_lora_rank"),
        kv_lora=count("kv_lora_rank"),
        nope_dim=count("qk_nope_head_dim"),
        rope_dim=count("qk_rope_head_dim", 2),
        v_dim=count("v_head_dim"),
        experts=count("n_routed_experts"),
        shared_experts=count("n_shared_experts"),
        active_experts=count("num_experts_per_tok"),
        groups=1 if raw.get("n_group") is None else count("n_group"),
        kept_groups=1 if raw.get("topk_group") is None else count("topk_group"),
        routed_scale=float(raw.get("routed_scaling_factor", 1.0)),
        scoring=scoring,
        routing_bias=method == "noaux_tc",
        normalise_weights=bool(raw.get("norm_topk_prob", True)),
        eps=float(raw.get("rms_norm_eps", 1e-6)),
        rope_theta=theta,
        yarn=yarn,
        max_positions=count("max_position_embeddings"),
        fp8=_is_fp8(raw.get("quantization_config")),
        mtp=bool(raw.get("num_nextn_predict_layers")),
    )
    if config.experts % config.groups or config.kept_groups > config.groups:
        raise ValueError(
            f"{config.experts} experts in {config.groups} groups, {config.kept_groups} kept"
        )
    if config.active_experts > config.kept_groups * (config.experts // config.groups):
        raise ValueError(f"{config.active_experts} active experts don't fit in the kept groups")
    if config.rope_dim % 2:
        raise ValueError(f"qk_rope_head_dim is {config.rope_dim}, which has no pairs")
    return config


def _rope(raw: dict[str, Any]) -> tuple[float, Yarn | None]:
    """Read theta and YaRN from `rope_parameters` (transformers 5) or `rope_scaling` (the hub)."""
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {"type": "default"}
    theta = float(rope.get("rope_theta", raw.get("rope_theta", 10000.0)))
    kind = rope.get("rope_type", rope.get("type"))
    if kind == "default":
        return theta, None
    if kind != "yarn":
        raise ValueError(f"rope type is {kind!r}; default and yarn are supported")
    yarn = Yarn(
        factor=float(rope["factor"]),
        original_length=int(rope["original_max_position_embeddings"]),
        **{
            key: float(rope[key])
            for key in ("beta_fast", "beta_slow", "mscale", "mscale_all_dim")
            if rope.get(key) is not None
        },
    )
    return theta, yarn


def _is_fp8(quantization: Any) -> bool:
    """Whether weights are block-fp8 as DeepSeek publishes them. ValueError for any other format."""
    if quantization is None:
        return False
    block = [FP8_BLOCK, FP8_BLOCK]
    if (
        quantization.get("quant_method") != "fp8"
        or quantization.get("fmt", "e4m3") != "e4m3"
        or quantization.get("weight_block_size") != block
    ):
        raise ValueError(f"quantization_config is not e4m3 fp8 in blocks of {block}")
    return True
