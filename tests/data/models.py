"""Directories that hold what tells DeepSeek's models of 671 B parameters from one another.

The weight files are sparse: they have the real ones' sizes and take no room.
"""

import json
from pathlib import Path

from data.identity import FP8_BYTES, R1

BOTH = "{{ bos_token }}{% for message in messages %}{{ message['content'] }}"
THOUGHTS = (
    "{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
)
LAST = "{% if add_generation_prompt and not ns.is_last_user and not ns.is_tool %}"
ALWAYS = "{% if add_generation_prompt and not ns.is_tool %}"
# What the models' own templates differ in
TEMPLATES = {
    R1: f"{BOTH}{THOUGHTS}{ALWAYS}{{{{'<｜Assistant｜><think>\\n'}}}}{{% endif %}}",
    "DeepSeek-R1-0528": f"{BOTH}{THOUGHTS}{LAST}{{{{'<｜Assistant｜>'}}}}{{% endif %}}",
    "DeepSeek-V3": f"{BOTH}{ALWAYS}{{{{'<｜Assistant｜>'}}}}{{% endif %}}",
    "DeepSeek-V3-0324": f"{BOTH}{LAST}{{{{'<｜Assistant｜>'}}}}{{% endif %}}",
    "DeepSeek-V3.1": "{% if not thinking is defined %}{% set thinking = false %}{% endif %}"
    f"{BOTH}{THOUGHTS}{LAST}{{{{'<｜Assistant｜>'}}}}{{% endif %}}",
}
FP8 = {
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "quant_method": "fp8",
    "weight_block_size": [128, 128],
}
# quantization_config, hf_quant_config.json, the end of a scale's name, bytes of all weights
FORMATS: dict[str, tuple[dict | None, dict | None, str, int]] = {
    "block-fp8": (FP8, None, ".weight_scale_inv", FP8_BYTES),
    "FP4": (
        None,
        {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4"}},
        ".weight_scale_2",
        424_000_000_000,
    ),
    "bf16": (None, None, ".weight", 1_370_000_000_000),
    "awq": ({"quant_method": "awq", "bits": 4}, None, ".qweight", 360_000_000_000),
}


def make_model(folder: Path, name: str, weights: str = "block-fp8", shards: int = 3) -> Path:
    """A directory as that of the model of this name, with weights of this format."""
    quantization, beside, ending, size = FORMATS[weights]
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        "hidden_size": 7168,
        "num_hidden_layers": 61,
        "n_routed_experts": 256,
        "vocab_size": 129280,
        "kv_lora_rank": 512,
        "max_position_embeddings": 163840,
    }
    if quantization:
        scale_fmt = {"scale_fmt": "ue8m0"} if name == "DeepSeek-V3.1" else {}
        config["quantization_config"] = quantization | scale_fmt
    (folder / "config.json").write_text(json.dumps(config))
    if beside:
        (folder / "hf_quant_config.json").write_text(json.dumps(beside))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATES[name]}))
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:06}.safetensors"
        weight_map[f"model.layers.{shard}.mlp.down_proj.weight"] = file
        weight_map[f"model.layers.{shard}.mlp.down_proj{ending}"] = file
        with (folder / file).open("wb") as sparse:
            sparse.truncate(size // shards)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
