"""Random checkpoints of the architecture, written by transformers, large enough to show errors."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ref_dsinfer.blocks import BlockPool
from ref_dsinfer.config import ModelConfig
from ref_dsinfer.model import Model
from ref_dsinfer.parallel import RankInfo, Ranks
from ref_dsinfer.runner import Runner
from ref_dsinfer.scheduler import Scheduler
from ref_dsinfer.sequence import Sequence

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


def written(
    path: Path, seed: int = 0, hub_keys: bool = False, mtp: bool = False, **changes: object
) -> Path:
    """Write a random model; `hub_keys` gives its config.json the keys R1's has, `mtp` makes its
    last layer one that drafts."""
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
    if mtp:
        make_last_layer_draft(path)
    return path


def make_last_layer_draft(path: Path) -> None:
    """Turn the last layer of a model into an MTP layer.

    Embeddings get a weight that makes the next token depend on the last one most, so that some
    drafts are right although the layer has not been trained.
    """
    config = json.loads((path / "config.json").read_text())
    config["num_hidden_layers"] -= 1
    config["num_nextn_predict_layers"] = 1
    (path / "config.json").write_text(json.dumps(config))
    size = config["hidden_size"]
    file = path / "model.safetensors"
    tensors = load_file(file)
    tensors["model.embed_tokens.weight"] *= 12
    unchanged = torch.cat([torch.eye(size), torch.zeros(size, size)], dim=1)
    added = {
        "enorm.weight": 1 + torch.rand(size) / 5,
        "hnorm.weight": torch.rand(size) + 0.5,
        "eh_proj.weight": unchanged + torch.randn(size, 2 * size) / 100,
        "shared_head.norm.weight": tensors["model.norm.weight"] * (1 + torch.rand(size) / 5),
        "shared_head.head.weight": tensors["lm_head.weight"].clone(),
        "embed_tokens.weight": tensors["model.embed_tokens.weight"].clone(),
    }
    layer = f"model.layers.{config['num_hidden_layers']}"
    tensors |= {f"{layer}.{name}": tensor for name, tensor in added.items()}
    save_file(tensors, file, {"format": "pt"})


class Bench:
    """A model and a cache, run step by step without an engine, so that logits can be seen."""

    def __init__(
        self,
        model_dir: Path,
        *prompts: tuple[int, ...],
        dtype: torch.dtype = torch.float32,
        blocks: int = 64,
        block_size: int = 16,
    ) -> None:
        ranks = Ranks(RankInfo(), torch.device("cpu"))
        self.config = ModelConfig.read(model_dir)
        model = Model.load(model_dir, self.config, dtype, ranks, self.config.max_positions)
        self.runner = Runner(model, blocks, block_size, dtype, ranks)
        self.scheduler = Scheduler([BlockPool(blocks, block_size)], len(prompts))
        self.sequences = [Sequence(i, prompt, 99) for i, prompt in enumerate(prompts)]
        for sequence in self.sequences:
            self.scheduler.add(sequence)

    def step(self, *tokens: int) -> Tensor:
        """Logits [N, V] of all sequences, after each got a further token, if any are given."""
        for sequence, token in zip(self.sequences, tokens, strict=False):
            sequence.answer_ids.append(token)
        work = self.scheduler.schedule()
        assert [one.sequence for one in work] == self.sequences
        return self.runner.run(work).part_MV


@pytest.fixture(scope="session")
def bench() -> type[Bench]:
    return Bench


@pytest.fixture(scope="session", name="write_model")
def write_model_fixture() -> Callable[..., Path]:
    """`write_model(path, seed, hub_keys, mtp, **changes)` writes a random model; its path."""
    return written


@pytest.fixture(scope="session")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model for all tests that need any; its sizes divide by 4."""
    return written(tmp_path_factory.mktemp("model") / "hf", hub_keys=True)


@pytest.fixture(scope="session")
def drafting_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with an MTP layer and so few tokens that some of its random drafts are right."""
    path = tmp_path_factory.mktemp("drafting") / "hf"
    return written(path, hub_keys=True, mtp=True, vocab_size=32, num_hidden_layers=4)
