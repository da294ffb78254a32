"""The model against transformers' DeepseekV3ForCausalLM, in fp32, through the engine's cache."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from ref_dsinfer import attention as decode
from ref_dsinfer import cpu_kernels, rope
from ref_dsinfer.attention import Attention
from ref_dsinfer.batch import Decodes, Prefill
from ref_dsinfer.config import ModelConfig
from ref_dsinfer.rounding import ceil_div

if TYPE_CHECKING:
    from tests.ref_dsinfer.conftest import Bench

TINY = Path(__file__).parents[2] / "data/tiny/model"
TOLERANCE = 2e-4
DECODED = 32

YARN_UNEVEN = {
    "type": "yarn",
    "factor": 8,
    "original_max_position_embeddings": 24,
    "beta_fast": 16,
    "beta_slow": 2,
    "mscale": 0.7,
    "mscale_all_dim": 1.0,
}
SHAPES: dict[str, dict[str, Any]] = {
    # YaRN and q_lora are conftest's own.
    "like-r1": {"hub_keys": True},
    "no-q-lora": {
        "q_lora_rank": None,
        "hidden_size": 80,
        "num_attention_heads": 5,
        "num_key_value_heads": 5,
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
    "told-magnitude": {
        "rope_scaling": YARN_UNEVEN | {"attention_factor": 0.8, "truncate": False},
        "rms_norm_eps": 1e-2,
    },
}


@pytest.fixture(scope="module", params=[*SHAPES, "tiny"])
def model_dir(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    write_model: Callable[..., Path],
) -> Path:
    if request.param == "tiny":
        return TINY
    path = tmp_path_factory.mktemp("models") / request.param
    return write_model(path, seed=len(request.param), **SHAPES[request.param])


def prompts_for(config: ModelConfig) -> list[tuple[int, ...]]:
    """Prompts of several lengths, one of them beyond YaRN's original length."""
    chance = random.Random(0)
    original = config.yarn.original_length if config.yarn else 32
    lengths = (1, 7, original - 1, original + 75)
    return [tuple(chance.randrange(config.vocab_size) for _ in range(n)) for n in lengths]


def theirs(model: Any, ids: tuple[int, ...]) -> Tensor:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0]


def test_logits_of_prompts_and_decoded_tokens_are_those_of_transformers(
    model_dir: Path, bench: "type[Bench]"
) -> None:
    from transformers import DeepseekV3ForCausalLM

    peer = DeepseekV3ForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    config = ModelConfig.read(model_dir)
    ours = bench(model_dir, *prompts_for(config))
    chance = random.Random(1)
    logits = [ours.step()]
    for _ in range(DECODED):
        logits.append(ours.step(*(chance.randrange(config.vocab_size) for _ in ours.sequences)))
    ours_SNV = torch.stack(logits)
    for number, sequence in enumerate(ours.sequences):
        expected = theirs(peer, (*sequence.prompt_ids, *sequence.answer_ids))[-DECODED - 1 :]
        assert (expected.amax(-1) - expected.amin(-1)).min() > 0.5  # else nothing is compared
        torch.testing.assert_close(ours_SNV[:, number], expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("step_tokens", [1000, 33, 5])
def test_every_position_of_a_prompt_is_right(
    model_dir: Path, bench: "type[Bench]", step_tokens: int
) -> None:
    """Prefilled at once, and in chunks."""
    from transformers import DeepseekV3ForCausalLM

    peer = DeepseekV3ForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    prompts = prompts_for(ModelConfig.read(model_dir))
    ours = bench(model_dir, *prompts)
    ours.scheduler.step_tokens = step_tokens
    chunks: list[list[Tensor]] = [[] for _ in prompts]
    while ours.scheduler.busy:
        work = ours.scheduler.schedule()
        with torch.inference_mode():
            batch = ours.runner.batch(work, [sum(one.count for one in work)])
            hidden = ours.runner.model(batch, ours.runner.cache)
            logits = ours.runner.model.logits(hidden).split([one.count for one in work])
        for one, part in zip(work, logits, strict=True):
            chunks[one.sequence.id].append(part)
            if one.stop == one.sequence.length:
                ours.scheduler.remove(one.sequence)
    assert (max(map(len, chunks)) > 1) == (step_tokens < 1000)
    for prompt, parts in zip(prompts, chunks, strict=True):
        torch.testing.assert_close(torch.cat(parts), theirs(peer, prompt), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("earlier", [0, 1, 8, 37])
def test_absorbed_attention_agrees_with_unabsorbed(
    random_model: Path, bench: "type[Bench]", earlier: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the tokens of a sequence behind `earlier` ones, each decoded as if it were a sequence of
    its own; the earlier ones in chunks."""
    monkeypatch.setattr("ref_dsinfer.attention.CONTEXT_CHUNK", 8)
    ours = bench(random_model, (1,), block_size=64)
    config, attention = ours.config, ours.runner.model.layers[1].self_attn
    assert isinstance(attention, Attention)
    torch.manual_seed(0)
    length, heads, block = 50, config.heads, 3
    q = torch.randn(length, heads, config.nope_dim + config.rope_dim)
    rotations = rope.table(config, length)
    latents = torch.randn(length, config.latent_dim)
    cache = ours.runner.cache
    cache.write(1, block * 64 + torch.arange(length), latents)
    q, rotations = q[earlier:], rotations[earlier:]
    count = length - earlier
    prefill = Prefill(count, block * 64 + torch.arange(earlier) if earlier else None)
    unabsorbed = attention.unabsorbed(q.clone(), rotations, latents[earlier:], cache, (prefill,))
    decodes = Decodes(torch.full((count, 1), block), torch.arange(earlier + 1, length + 1))
    absorbed = attention.absorbed(q, rotations, cache.blocks(1), decodes)
    assert unabsorbed.abs().max() > 0.5
    torch.testing.assert_close(absorbed, unabsorbed, rtol=0, atol=2e-5)


@pytest.mark.skipif(cpu_kernels.library() is None, reason="no C++ compiler")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("places", "heads", "width", "kept"), [(16, 3, 40, 33), (64, 4, 576, 512)])
def test_the_compiled_attention_is_the_plain_one(
    places: int, heads: int, width: int, kept: int, dtype: torch.dtype
) -> None:
    """With sequences of different lengths, whose blocks are anywhere."""
    torch.manual_seed(0)
    lengths = torch.tensor([1, places, 3 * places + 5, 2, 2 * places - 1])
    blocks = torch.randn(12, places, width).to(dtype)
    table = torch.zeros(5, 4, dtype=torch.int64)
    free = iter(torch.randperm(12).tolist())
    for row, length in zip(table, lengths.tolist(), strict=True):
        for column in range(ceil_div(length, places)):
            row[column] = next(free)
    q = torch.randn(5, heads, width)
    exact = decode.plain(q, blocks.float(), table, lengths, kept, 0.1)
    result = cpu_kernels.attend(q, blocks, table, lengths, kept, 0.1)
    torch.testing.assert_close(result, exact, rtol=0, atol=1e-5)


def test_bfloat16_keeps_the_residual_in_bf16_and_logits_norms_and_gate_in_fp32(
    random_model: Path, bench: "type[Bench]"
) -> None:
    rounded = bench(random_model, (3, 5, 7), dtype=torch.bfloat16)
    logits, expected = rounded.step(), bench(random_model, (3, 5, 7)).step()
    assert logits.dtype == torch.float32
    assert rounded.runner.cache.blocks(0).dtype == torch.bfloat16
    parameters = rounded.runner.model.named_parameters()
    fp32 = {name for name, p in parameters if p.dtype == torch.float32}
    assert all("norm" in name or ".gate." in name or "lm_head" in name for name in fp32)
    assert 1e-4 < (logits - expected).abs().max() < 0.1
