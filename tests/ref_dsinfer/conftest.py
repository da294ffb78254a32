"""Random checkpoints of the architecture, written by transformers, large enough to disagree on."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

YARN = {
    "type": "yarn",
    "factor": 16,
    "original_max_position_embeddings": 32,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}
SHAPE = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "n_shared_experts": 2,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
    "q_lora_rank": 48,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 24,
    "qk_rope_head_dim": 16,
    "v_head_dim": 20,
    "max_position_embeddings": 512,
    "rope_scaling": YARN,
    "initializer_range": 0.1,
    "num_nextn_predict_layers": 0,
}


def written(path: Path, seed: int = 0, hub_keys: bool = False, **changes: object) -> Path:
    """Write a random model; `hub_keys` gives its config.json the keys R1's has."""
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    torch.manual_seed(seed)
    shape = SHAPE | changes
    model = DeepseekV3ForCausalLM(DeepseekV3Config(**shape))
    for name, tensor in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(tensor, 0.5, 1.5)
    for name, tensor in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            torch.nn.init.uniform_(tensor, -0.3, 0.3)
    model.save_pretrained(path)
    if hub_keys:
        file = path / "config.json"
        config = json.loads(file.read_text())
        config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
        config |= {"rope_scaling": shape["rope_scaling"], "topk_method": "noaux_tc"}
        file.write_text(json.dumps(config))
    return path


@pytest.fixture(scope="session", name="write_model")
def write_model_fixture() -> Callable[..., Path]:
    """`write_model(path, seed, hub_keys, **changes)` writes a random model and returns its path."""
    return written


@pytest.fixture(scope="session")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model for every test that needs just any; its sizes divide by 4."""
    return written(tmp_path_factory.mktemp("model") / "hf", hub_keys=True)
