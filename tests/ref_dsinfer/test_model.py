"""The model against transformers' DeepseekV3ForCausalLM, in fp32, through the engine's cache."""

import random
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ref_dsinfer.cache import GROWTH
from ref_dsinfer.config import ModelConfig
from ref_dsinfer.parallel import Place, Ranks
from ref_dsinfer.runner import Runner
from ref_dsinfer.sequence import Sequence

TINY = Path(__file__).parents[2] / "data/tiny/model"
TOLERANCE = 2e-4
DECODED = 32
CPU = torch.device("cpu")

YARN_UNEVEN = {
    "type": "yarn",
    "factor": 8,
    "original_max_position_embeddings": 24,
    "beta_fast": 16,
    "beta_slow": 2,
    "mscale": 0.7,
    "mscale_all_dim": 1.0,
}
SHAPES = {
    # YaRN and q_lora are conftest's own.
    "like-r1": {"hub_keys": True},
    "no-q-lora": {
        "q_lora_rank": None,
        "hidden_size": 80,
        "num_attention_heads": 5,
        "v_head_dim": 40,  # wider than a key
        "first_k_dense_replace": 0,
        "n_shared_experts": 1,
    },
    "uneven-yarn": {
        "rope_scaling": YARN_UNEVEN,
        "n_group": 2,
        "topk_group": 1,
        "n_routed_experts": 12,
        "num_experts_per_tok": 5,
        "routed_scaling_factor": 1.3,
        "norm_topk_prob": False,
        "qk_rope_head_dim": 24,
    },
}


@pytest.fixture(scope="module", params=[*SHAPES, "tiny"])
def model_dir(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, write_model
) -> Path:
    if request.param == "tiny":
        return TINY
    path = tmp_path_factory.mktemp("models") / request.param
    return write_model(path, seed=len(request.param), **SHAPES[request.param])


def prompts_for(config: ModelConfig) -> list[tuple[int, ...]]:
    """Of several lengths, one of them past YaRN's original length."""
    chance = random.Random(0)
    original = config.yarn.original_length if config.yarn else 32
    lengths = (1, 7, original - 1, original + 75)
    return [tuple(chance.randrange(config.vocab_size) for _ in range(n)) for n in lengths]


def theirs(model, ids: tuple[int, ...]) -> Tensor:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0]


def test_logits_of_prompts_and_decoded_tokens_are_those_of_transformers(model_dir: Path) -> None:
    from transformers import DeepseekV3ForCausalLM

    peer = DeepseekV3ForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    config = ModelConfig.read(model_dir)
    prompts = prompts_for(config)
    length = max(map(len, prompts)) + DECODED
    runner = Runner(
        model_dir, config, torch.float32, Ranks(Place(), CPU), slots=len(prompts), max_length=length
    )
    sequences = [Sequence(i, prompt, DECODED, slot=i) for i, prompt in enumerate(prompts)]
    chance = random.Random(1)
    ours = [runner.run(sequences, prefill=True)]
    for _ in range(DECODED):
        for sequence in sequences:
            sequence.answer_ids.append(chance.randrange(config.vocab_size))
        ours.append(runner.run(sequences, prefill=False))
    ours_SNV = torch.stack(ours)
    for number, sequence in enumerate(sequences):
        expected = theirs(peer, (*sequence.prompt_ids, *sequence.answer_ids))[-DECODED - 1 :]
        assert (expected.amax(-1) - expected.amin(-1)).min() > 0.5  # else nothing is compared
        torch.testing.assert_close(ours_SNV[:, number], expected, rtol=0, atol=TOLERANCE)


def test_every_position_of_a_prompt_is_right(model_dir: Path) -> None:
    from transformers import DeepseekV3ForCausalLM

    peer = DeepseekV3ForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    config = ModelConfig.read(model_dir)
    prompts = prompts_for(config)
    length = max(map(len, prompts))
    ranks = Ranks(Place(), CPU)
    runner = Runner(model_dir, config, torch.float32, ranks, slots=4, max_length=length)
    sequences = [Sequence(i, prompt, 1, slot=i) for i, prompt in enumerate(prompts)]
    runner.cache.reserve(length)
    with torch.inference_mode():
        hidden = runner.model(runner.prefill_batch(sequences), runner.cache)
        ours = runner.model.logits(hidden).split([len(prompt) for prompt in prompts])
    for prompt, logits in zip(prompts, ours, strict=True):
        torch.testing.assert_close(logits, theirs(peer, prompt), rtol=0, atol=TOLERANCE)


def test_a_cache_that_grows_keeps_what_it_holds(random_model: Path) -> None:
    config = ModelConfig.read(random_model)
    ranks = Ranks(Place(), CPU)
    runner = Runner(random_model, config, torch.float32, ranks, slots=2, max_length=2 * GROWTH)
    chance = random.Random(0)
    ids = tuple(chance.randrange(config.vocab_size) for _ in range(GROWTH + 5))
    sequences = [Sequence(0, ids[:3], 9, slot=0), Sequence(1, ids[: GROWTH - 3], 9, slot=1)]
    runner.run(sequences, prefill=True)
    assert runner.cache.capacity == GROWTH
    for step in range(8):
        for sequence in sequences:
            sequence.answer_ids.append(ids[len(sequence.prompt_ids) + step])
        logits = runner.run(sequences, prefill=False)
    assert runner.cache.capacity == 2 * GROWTH
    fresh = Runner(random_model, config, torch.float32, ranks, slots=2, max_length=2 * GROWTH)
    expected = fresh.run(sequences, prefill=True)
    torch.testing.assert_close(logits, expected, rtol=0, atol=2e-5)


def test_absorbed_attention_agrees_with_unabsorbed(random_model: Path) -> None:
    config = ModelConfig.read(random_model)
    ranks = Ranks(Place(), CPU)
    runner = Runner(random_model, config, torch.float32, ranks, slots=1, max_length=64)
    attention = runner.model.layers[1].self_attn
    torch.manual_seed(0)
    length, heads = 50, config.heads
    q_nope = torch.randn(length, heads, config.nope_dim)
    q_rope = torch.randn(length, heads, config.rope_dim)
    latents = torch.randn(length, config.latent_dim)
    unabsorbed = attention.unabsorbed(q_nope, q_rope, latents, (length,))
    mask = torch.full((length, length), -torch.inf).triu(1)
    absorbed = attention.absorbed(q_nope, q_rope, latents.expand(length, -1, -1), mask)
    assert unabsorbed.abs().max() > 0.5
    torch.testing.assert_close(absorbed, unabsorbed, rtol=0, atol=2e-5)


def test_bfloat16_keeps_the_residual_in_bf16_and_logits_norms_and_gate_in_fp32(
    random_model: Path,
) -> None:
    config = ModelConfig.read(random_model)
    ranks = Ranks(Place(), CPU)
    runner = Runner(random_model, config, torch.bfloat16, ranks, slots=1, max_length=64)
    sequence = Sequence(0, (3, 5, 7), 4, slot=0)
    logits = runner.run([sequence], prefill=True)
    exact = Runner(random_model, config, torch.float32, ranks, slots=1, max_length=64)
    expected = exact.run([sequence], prefill=True)
    assert logits.dtype == torch.float32
    assert runner.cache.context(0, 1, 3).dtype == torch.bfloat16
    fp32 = {name for name, p in runner.model.named_parameters() if p.dtype == torch.float32}
    assert all("norm" in name or ".gate." in name or "lm_head" in name for name in fp32)
    assert 1e-4 < (logits - expected).abs().max() < 0.1
