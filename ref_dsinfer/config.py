"""A DeepSeek-V3 model's `config.json`, checked once and then trusted."""

import logging
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as short
from typing import Any, Literal

from errors import ModelError
from ref_dsinfer import keys
from ref_dsinfer.lookalike import HEAD, JSON, read_object, what_it_is

log = logging.getLogger(__name__)

CONFIG_FILE = "config.json"
ARCHITECTURE = "DeepseekV3ForCausalLM"
MANY = 8  # keys: too many to name them all


@dataclass(frozen=True)
class Yarn:
    """Scaling of rotary positions beyond the length that a model was first trained on."""

    factor: float
    original_length: int  # tokens
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 0.0
    mscale_all_dim: float = 0.0
    attention_factor: float | None = None  # None: it follows from the others
    truncate: bool = True  # round the ramp's ends to whole pairs

    def temperature(self, mscale: float) -> float:
        """YaRN's attention temperature for this factor."""
        return 0.1 * mscale * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0

    @property
    def magnitude(self) -> float:
        """Factor of rotated values. `mscale` has an effect only together with `mscale_all_dim`."""
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return self.temperature(self.mscale) / self.temperature(self.mscale_all_dim)
        return self.temperature(1.0)


@dataclass(frozen=True)
class ModelConfig:
    """A model's dimensions. Sizes are those of the whole model, not of one rank's part."""

    vocab_size: int
    hidden: int
    dense_intermediate: int
    expert_intermediate: int
    layers: int  # MTP layers not counted
    dense_layers: int  # the first ones, without experts
    heads: int
    q_lora: int | None  # None: queries come straight from the hidden state
    kv_lora: int
    nope_dim: int  # the part of a head's query and key that is not rotated
    rope_dim: int  # the rotated part of a head's query, and of the one key that all heads share
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
    ue8m0: bool = False  # scales of activations rounded to fp8 are powers of two
    mtp: bool = False  # a further layer behind the others drafts tokens

    @property
    def latent_dim(self) -> int:
        """Values in the KV cache for each token and layer: the latent, then the rotated key."""
        return self.kv_lora + self.rope_dim

    @property
    def cached_layers(self) -> int:
        """Layers that keep latents."""
        return self.layers + self.mtp

    def token_bytes(self, item_bytes: int) -> int:
        """Bytes of a token in the KV cache, with `item_bytes` for each value."""
        return self.cached_layers * self.latent_dim * item_bytes

    @property
    def softmax_scale(self) -> float:
        """Factor of attention scores, YaRN's temperature included."""
        scale = (self.nope_dim + self.rope_dim) ** -0.5
        if self.yarn:
            scale *= self.yarn.temperature(self.yarn.mscale_all_dim) ** 2
        return scale

    @classmethod
    def read(cls, model_dir: Path) -> "ModelConfig":
        """Read `model_dir/config.json`, in the hub's keys or in those that transformers 5 writes.

        Raises: ModelError if it is missing, unreadable, of another architecture or inconsistent,
        or a key has a value that this engine does not support.
        """
        raw = read_config(model_dir)
        path = model_dir / CONFIG_FILE
        architectures = raw.get("architectures")
        if not isinstance(architectures, list) or ARCHITECTURE not in architectures:
            raise ModelError(f"{path} {_what_it_describes(path, raw)}, not {ARCHITECTURE}")
        try:
            config = _parse(raw)
        except KeyError as error:
            raise ModelError(f"{path}: {error.args[0]!r} is missing") from error
        except (TypeError, ValueError, OverflowError) as error:
            raise ModelError(f"{path}: {error}") from error
        if unknown := sorted(raw.keys() - keys.KNOWN):
            names = ", ".join(map(short, unknown[:MANY])) + (", …" if len(unknown) > MANY else "")
            log.warning("%s: keys that this engine ignores: %s", path, names)
        return config


def read_config(model_dir: str | Path) -> dict[str, Any]:
    """A model directory's config.json as it stands, of any architecture.

    Raises: ModelError where there is none, or it is not a JSON object.
    """
    path = Path(model_dir) / CONFIG_FILE
    if not path.is_file():
        raise ModelError(f"{path} does not exist: {_what_to_name(path.parent)}")
    return read_object(path)


def cached_values(model_dir: str | Path) -> int:
    """Values of a token in the KV cache, in all layers, also of a model that only others support.

    Raises: ModelError where config.json does not describe DeepSeek-V3's attention.
    """
    raw = read_config(model_dir)
    try:
        return int(raw["num_hidden_layers"] * (raw["kv_lora_rank"] + raw["qk_rope_head_dim"]))
    except (KeyError, TypeError, ValueError) as error:
        path = Path(model_dir) / CONFIG_FILE
        raise ModelError(f"{path}: not of DeepSeek-V3's architecture") from error


def _what_to_name(model_dir: Path) -> str:
    if list(model_dir.glob("model*-mp*.safetensors")):  # DeepSeek's own convert.py leaves it out
        return "copy it from the Hugging Face directory that the weights were made from"
    return "--model must name a Hugging Face directory"


def _what_it_describes(path: Path, raw: Mapping[str, Any]) -> str:
    """What a config.json without our architecture describes, or what the file is instead."""
    if architectures := raw.get("architectures"):
        return f"describes {short(architectures)}"
    if raw.keys() >= {"dim", "n_layers"}:
        return "has the keys of DeepSeek's inference code"
    with path.open("rb") as file:
        phrase = what_it_is(file.read(HEAD))
    return "describes no architecture" if phrase in (JSON, None) else f"is {phrase}"


def _parse(raw: dict[str, Any]) -> ModelConfig:
    """Turn the file's keys into ours. An absent key means what it means to transformers.

    Raises: KeyError for a missing key, else ValueError.
    """

    def count(key: str, least: int = 1) -> int:
        value = raw[key]
        if type(value) is not int or value < least:
            raise ValueError(f"{key} is {short(value)}, not a whole number of {least} or more")
        return value

    def optional(key: str, absent: int, null: int | None) -> int | None:
        if key not in raw:
            return absent
        return null if raw[key] is None else count(key)

    for key, allowed in keys.FIXED.items():
        _check_value(key, raw.get(key, allowed[0]), allowed)
    for key, others in keys.DERIVED.items():
        total = sum(count(other) for other in others)
        if raw.get(key) not in (total, None):
            raise ValueError(f"{key} is {short(raw[key])}, but {' + '.join(others)} is {total}")
    theta, yarn = _rope(raw)
    fp8, ue8m0 = _quantization(raw.get("quantization_config"), raw)
    scoring = raw.get("scoring_func", "sigmoid")
    method = raw.get("topk_method", "noaux_tc")
    _check_value("scoring_func", scoring, ("sigmoid", "softmax"))
    _check_value("topk_method", method, ("noaux_tc", "group_limited_greedy"))
    normalise = raw.get("norm_topk_prob", True)
    _check_value("norm_topk_prob", normalise, (True, False, None))
    config = ModelConfig(
        vocab_size=count("vocab_size"),
        hidden=count("hidden_size"),
        dense_intermediate=count("intermediate_size"),
        expert_intermediate=count("moe_intermediate_size"),
        layers=count("num_hidden_layers"),
        dense_layers=count("first_k_dense_replace", 0),
        heads=count("num_attention_heads"),
        q_lora=optional("q_lora_rank", 1536, None),
        kv_lora=count("kv_lora_rank"),
        nope_dim=count("qk_nope_head_dim"),
        rope_dim=count("qk_rope_head_dim", 2),
        v_dim=count("v_head_dim"),
        experts=count("n_routed_experts"),
        shared_experts=count("n_shared_experts"),
        active_experts=count("num_experts_per_tok"),
        groups=optional("n_group", 8, 1) or 1,
        kept_groups=optional("topk_group", 4, 1) or 1,
        routed_scale=_number("routed_scaling_factor", raw.get("routed_scaling_factor", 2.5)),
        scoring=scoring,
        routing_bias=method == "noaux_tc",
        normalise_weights=bool(normalise),
        eps=_number("rms_norm_eps", raw.get("rms_norm_eps", 1e-6)),
        rope_theta=theta,
        yarn=yarn,
        max_positions=count("max_position_embeddings"),
        fp8=fp8,
        ue8m0=ue8m0,
        mtp=bool(raw.get("num_nextn_predict_layers", raw.get("num_mtp_layers"))),
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


def _check_value(key: str, value: Any, allowed: tuple[Any, ...]) -> None:
    if value not in allowed:
        values = " or ".join(map(repr, allowed))
        raise ValueError(f"{key} is {short(value)}; this engine supports {values} only")


def _number(key: str, value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError(f"{key} is {short(value)}, not a number")
    return float(value)


def _above(key: str, value: Any, limit: float = 0) -> float:
    if (number := _number(key, value)) <= limit:
        raise ValueError(f"{key} is {short(value)}; it must be above {limit}")
    return number


def _object(key: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{key} is {short(value)}, not an object")
    return value


def _refuse_unknown(key: str, names: Iterable[str], known: Iterable[str]) -> None:
    if unknown := sorted(set(names) - set(known)):
        raise ValueError(f"{key} has {short(unknown[0])}, which this engine does not support")


def _rope(raw: dict[str, Any]) -> tuple[float, Yarn | None]:
    """Read theta and YaRN from `rope_parameters` (transformers 5) or `rope_scaling` (the hub)."""
    present = [key for key in ("rope_parameters", "rope_scaling") if raw.get(key)]
    readings = {_one_rope(key, _object(key, raw[key]), raw) for key in present}
    if len(readings) > 1:
        raise ValueError(f"{' and '.join(present)} contradict each other: keep one of them")
    return readings.pop() if readings else _one_rope("rope_scaling", {}, raw)


def _one_rope(key: str, rope: dict[str, Any], raw: dict[str, Any]) -> tuple[float, Yarn | None]:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if any(isinstance(value, dict) for value in rope.values()):
        raise ValueError(f"{key} differs by layer, which this engine does not support")
    _check_value(f"{key}'s type", kind, tuple(keys.ROPE))
    _refuse_unknown(key, rope, {*keys.ROPE[kind], *keys.ROPE_TYPE, "partial_rotary_factor"})
    _check_value(
        f"{key}'s partial_rotary_factor",
        rope.get("partial_rotary_factor"),
        keys.FIXED["partial_rotary_factor"],
    )
    theta = _above("rope_theta", rope.get("rope_theta", raw.get("rope_theta", 10000.0)), 1)
    if kind == "default":
        return theta, None
    # transformers prefers the outer one
    original = {**rope, **raw}["original_max_position_embeddings"]
    truncate = rope.get("truncate", True)
    factor = rope.get("attention_factor")
    _check_value(f"{key}'s truncate", truncate, (True, False))
    if type(original) is not int or original < 1:
        raise ValueError(f"original_max_position_embeddings is {short(original)}, not a length")
    yarn = Yarn(
        factor=_above(f"{key}'s factor", rope["factor"]),
        original_length=original,
        # as in transformers, 0 means what None does
        beta_fast=_above(f"{key}'s beta_fast", rope.get("beta_fast") or 32),
        beta_slow=_above(f"{key}'s beta_slow", rope.get("beta_slow") or 1),
        mscale=_number(f"{key}'s mscale", rope.get("mscale") or 0),
        mscale_all_dim=_number(f"{key}'s mscale_all_dim", rope.get("mscale_all_dim") or 0),
        attention_factor=None if factor is None else _number(f"{key}'s attention_factor", factor),
        truncate=bool(truncate),
    )
    return theta, yarn


def _quantization(value: Any, raw: dict[str, Any]) -> tuple[bool, bool]:
    """Whether weights are block-fp8 as DeepSeek publishes them, and whether activations' scales are
    powers of two. Raises: ValueError for any other format."""
    if value is None:
        return False, False
    quantization = _object("quantization_config", value)
    for key, allowed in keys.QUANTIZATION.items():
        _check_value(f"quantization_config's {key}", quantization.get(key), allowed)
    _refuse_unknown("quantization_config", quantization, {*keys.QUANTIZATION, *keys.UNCONVERTED})
    for key in keys.UNCONVERTED:
        for pattern in quantization.get(key) or []:
            if name := _first_linear(key, pattern, raw["num_hidden_layers"]):
                raise ValueError(
                    f"quantization_config's {key} has {short(pattern)}, which leaves {name}"
                    " unquantized; this engine supports fp8 for all linear layers or none"
                )
    return True, quantization.get("scale_fmt") == "ue8m0"


def _first_linear(key: str, pattern: str, layers: int) -> str | None:
    """The first linear module that a pattern matches by transformers' rules; None if none.

    Not all experts are tried: the loader finds weights that are not fp8.
    """
    attention = ("q_proj", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")
    parts = [f"self_attn.{name}" for name in attention]
    for mlp in ("mlp", "mlp.shared_experts", "mlp.experts.0"):
        parts += [f"{mlp}.{name}" for name in ("gate_proj", "up_proj", "down_proj")]
    names = (f"model.layers.{layer}.{part}" for layer in range(layers) for part in parts)
    try:
        matcher = re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"quantization_config's {key} has {short(pattern)}, no regular expression: {error}"
        ) from error
    return next((name for name in names if matcher.match(name) or name.endswith(pattern)), None)
