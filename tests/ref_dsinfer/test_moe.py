"""Routing against a plain definition, written with loops."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ref_dsinfer import gemm
from ref_dsinfer.config import ModelConfig
from ref_dsinfer.layers import Weight, narrow, parameter
from ref_dsinfer.model import Model
from ref_dsinfer.moe import NO_EXPERT, Experts, Gate, MoE, route
from ref_dsinfer.parallel import RankInfo, Ranks

CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def config(random_model: Path) -> ModelConfig:
    return ModelConfig.read(random_model)


def plain_route(
    logits: list[float], bias: list[float] | None, config: ModelConfig
) -> dict[int, float]:
    """Expert → weight of one token."""
    if config.scoring == "sigmoid":
        scores = torch.tensor(logits).sigmoid().tolist()
    else:
        scores = torch.tensor(logits).softmax(0).tolist()
    choice = scores
    if bias is not None:
        choice = (torch.tensor(scores) + torch.tensor(bias)).tolist()
    size = config.experts // config.groups
    groups = [list(range(g * size, (g + 1) * size)) for g in range(config.groups)]
    best = 1 if bias is None else 2

    def group_score(group: list[int]) -> float:
        chosen = sorted((choice[e] for e in group), reverse=True)[:best]
        return float(torch.tensor(chosen).sum())

    kept = sorted(groups, key=group_score, reverse=True)[: config.kept_groups]
    candidates = sorted((e for group in kept for e in group), key=lambda e: -choice[e])
    experts = candidates[: config.active_experts]
    total = sum(scores[e] for e in experts) if config.normalise_weights else 1.0
    return {e: scores[e] / total * config.routed_scale for e in experts}


@st.composite
def routings(draw: st.DrawFn) -> tuple[dict, list[float], list[float] | None]:
    groups, size = draw(st.sampled_from([(1, 6), (2, 4), (4, 2), (4, 4), (8, 2)]))
    kept = draw(st.integers(1, groups))
    shape = {
        "experts": groups * size,
        "groups": groups,
        "kept_groups": kept,
        "active_experts": draw(st.integers(1, kept * size)),
        "scoring": draw(st.sampled_from(["sigmoid", "softmax"])),
        "normalise_weights": draw(st.booleans()),
    }
    # Distinct, and no two opposite (their sigmoids would add up to 1): no tie decides.
    values = draw(st.permutations(range(groups * size)))
    logits = [value * 0.23 - 1.9 for value in values]
    centre = draw(st.sampled_from([-7.0, -1.0, 0.0, 7.0]))
    noise = st.floats(-0.5, 0.5, width=32)
    bias = draw(st.none() | st.lists(noise, min_size=len(logits), max_size=len(logits)))
    return shape, logits, None if bias is None else [centre + b for b in bias]


@settings(max_examples=200, deadline=None)
@given(routings())
def test_routing_is_the_plain_definition(config: ModelConfig, case: tuple) -> None:
    shape, logits, bias = case
    shaped = replace(config, **shape)
    weights, experts = route(
        torch.tensor([logits]), None if bias is None else torch.tensor(bias), shaped
    )
    routed = dict(zip(experts[0].tolist(), weights[0].tolist(), strict=True))
    expected = plain_route(logits, bias, shaped)
    assert routed == pytest.approx(expected, rel=1e-5)


def test_groups_with_negative_biased_scores_stay_out(config: ModelConfig) -> None:
    """With 0 in place of −inf the dropped groups would win against negative scores."""
    shaped = replace(config, experts=8, groups=4, kept_groups=1, active_experts=2)
    bias = torch.full((8,), -5.0)
    _, experts = route(torch.tensor([[0.0, 0, 0, 0, 3, 3, 0, 0]]), bias, shaped)
    assert sorted(experts[0].tolist()) == [4, 5]


def gate_of(model: Model) -> Gate:
    """The gate of the first MoE layer."""
    mlp = model.layers[1].mlp
    assert isinstance(mlp, MoE)
    return mlp.gate


def test_padding_is_given_no_expert_and_adds_nothing(config: ModelConfig) -> None:
    torch.manual_seed(2)
    ranks = Ranks(RankInfo(), CPU)
    moe = MoE(config, torch.float32, ranks)
    for weight in moe.parameters():
        weight.data.normal_()
    x = torch.randn(6, config.hidden)
    real = torch.tensor([True, False, True, True, False, False])
    _, experts = moe.gate(x, real)
    assert (experts[~real] == NO_EXPERT).all()
    assert (experts[real] >= 0).all()
    # Sums of many terms in another order: experts have other numbers of rows.
    output = moe(x, real)
    torch.testing.assert_close(output[real], moe(x)[real], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(output[~real], moe.shared_experts(x[~real]), rtol=1e-4, atol=1e-3)


def test_weights_are_kept_in_bf16_only_where_no_value_changes() -> None:
    exact = parameter((4, 5), torch.float32)
    exact.data = torch.randn(4, 5).bfloat16().float()
    values = exact.data.clone()
    narrow(exact)
    assert exact.dtype == torch.bfloat16
    assert torch.equal(exact.float(), values)
    x = torch.randn(3, 5).bfloat16()
    assert torch.equal(gemm.in_fp32(x, exact), torch.nn.functional.linear(x.float(), values))
    exact.data = values + 2**-20
    narrow(exact)
    assert exact.dtype == torch.float32


def test_a_bias_near_seven_is_kept_in_fp32_by_a_bf16_model(
    tmp_path: Path, write_model: Callable[..., Path]
) -> None:
    from safetensors.torch import load_file, save_file

    path = write_model(tmp_path / "hf")
    tensors = load_file(path / "model.safetensors")
    name = "model.layers.1.mlp.gate.e_score_correction_bias"
    tensors[name] = 7 + torch.rand(8) * 0.05
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    config = ModelConfig.read(path)
    model = Model.load(path, config, torch.bfloat16, Ranks(RankInfo(), CPU), 16)
    gate = gate_of(model)
    torch.manual_seed(0)
    x = torch.randn(200, config.hidden, dtype=torch.bfloat16) * 0.02
    logits = x.float() @ tensors["model.layers.1.mlp.gate.weight"].T
    expected = route(logits, tensors[name], config)[1]
    rounded = route(logits, tensors[name].bfloat16().float(), config)[1]
    assert torch.equal(gate(x)[1].sort().values, expected.sort().values)
    changed = (expected.sort().values != rounded.sort().values).any(dim=1)
    assert changed.float().mean() > 0.3  # rounding would have shown


@pytest.mark.parametrize("world", [1, 2])
def test_experts_add_up_over_ranks_to_the_plain_loop(config: ModelConfig, world: int) -> None:
    torch.manual_seed(1)
    tokens = 9
    x = torch.randn(tokens, config.hidden)
    chosen = torch.stack([torch.randperm(config.experts)[:2] for _ in range(tokens)])
    weights = torch.rand(tokens, 2)
    gate_up = torch.randn(config.experts, 2, config.expert_intermediate, config.hidden)
    down = torch.randn(config.experts, config.hidden, config.expert_intermediate)
    expected = torch.zeros(tokens, config.hidden)
    for t in range(tokens):
        for a in range(2):
            e = chosen[t, a]
            inner = torch.nn.functional.silu(gate_up[e, 0] @ x[t]) * (gate_up[e, 1] @ x[t])
            expected[t] += weights[t, a] * (down[e] @ inner)
    total = torch.zeros(tokens, config.hidden)
    for rank in range(world):
        ranks = Ranks(RankInfo(), CPU)
        ranks.rank, ranks.world_size = rank, world
        experts = Experts(config, torch.float32, ranks)
        own = slice(experts.first, experts.first + experts.count)
        fill(experts.gate_up_proj, gate_up[own])
        fill(experts.down_proj, down[own])
        total += gemm.plain_combine(experts(x, weights, chosen))
    torch.testing.assert_close(total, expected, rtol=1e-4, atol=1e-3)


def test_a_rank_without_any_chosen_expert_adds_nothing(config: ModelConfig) -> None:
    ranks = Ranks(RankInfo(), CPU)
    ranks.rank, ranks.world_size = 1, 2
    experts = Experts(config, torch.float32, ranks)
    fill(experts.gate_up_proj, torch.ones(4, 2, config.expert_intermediate, config.hidden))
    fill(experts.down_proj, torch.ones(4, config.hidden, config.expert_intermediate))
    x = torch.ones(3, config.hidden)
    pairs = experts(x, torch.ones(3, 2), torch.tensor([[0, 1]] * 3))
    assert not gemm.plain_combine(pairs).any()


def fill(weight: Weight, values: torch.Tensor) -> None:
    weight.weight.data.copy_(values)


def test_v2_models_load_without_a_bias(tmp_path: Path, write_model: Callable[..., Path]) -> None:
    from safetensors.torch import load_file, save_file

    path = write_model(tmp_path / "hf", hub_keys=True)
    tensors = load_file(path / "model.safetensors")
    kept = {k: v for k, v in tensors.items() if "e_score_correction_bias" not in k}
    save_file(kept, path / "model.safetensors", {"format": "pt"})
    raw = json.loads((path / "config.json").read_text())
    raw |= {"topk_method": "group_limited_greedy", "scoring_func": "softmax"}
    (path / "config.json").write_text(json.dumps(raw))
    config = ModelConfig.read(path)
    model = Model.load(path, config, torch.float32, Ranks(RankInfo(), CPU), 16)
    gate = gate_of(model)
    assert gate.e_score_correction_bias is None
    weights, _ = gate(torch.randn(5, config.hidden))
    torch.testing.assert_close(weights.sum(-1), torch.full((5,), config.routed_scale))
