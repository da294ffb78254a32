"""Mixture of experts: group-limited routing, routed and shared experts (arXiv 2412.19437, 2.1.2).

Shape letters: T tokens, A active experts a token, E experts, G groups, P pairs of token and expert
of this rank, D hidden, I intermediate.
"""

import torch
from torch import Tensor, nn

from ref_dsinfer import gemm, kernels
from ref_dsinfer.config import ModelConfig
from ref_dsinfer.layers import MLP, Weight, parameter
from ref_dsinfer.parallel import Ranks

NO_EXPERT = -1  # of rows that are padding


class Gate(nn.Module):
    """Chooses each token's experts. In fp32: rounding the bias alone would change the choice."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.weight = parameter((config.experts, config.hidden), torch.float32)
        self.e_score_correction_bias = (
            parameter((config.experts,), torch.float32) if config.routing_bias else None
        )

    def forward(self, x_TD: Tensor, real_T: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Returns (weights [T, A] fp32, experts [T, A]), in no particular order. See `route`."""
        logits_TE = gemm.in_fp32(x_TD, self.weight)
        return route(logits_TE, self.e_score_correction_bias, self.config, real_T)


def route(
    logits_TE: Tensor,
    bias_E: Tensor | None,
    config: ModelConfig,
    real_T: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Top experts by group. The bias affects only the choice; weights are the plain scores.

    Tokens that are padding by `real_T`, bool, are given `NO_EXPERT`, which no rank has.
    """
    if kernels.used(logits_TE):
        from ref_dsinfer.kernels import routing  # Triton is installed only where GPUs are used

        return routing.route(logits_TE, bias_E, config, real_T)
    return plain_route(logits_TE, bias_E, config, real_T)


def plain_route(
    logits_TE: Tensor,
    bias_E: Tensor | None,
    config: ModelConfig,
    real_T: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The definition of `route`, on any device."""
    scores_TE = logits_TE.sigmoid() if config.scoring == "sigmoid" else logits_TE.softmax(dim=-1)
    choice_TE = scores_TE if bias_E is None else scores_TE + bias_E
    if config.groups > 1:
        choice_TGE = choice_TE.unflatten(-1, (config.groups, -1))
        best = 1 if bias_E is None else min(2, choice_TGE.shape[-1])
        score_TG = choice_TGE.topk(best, dim=-1).values.sum(dim=-1)
        kept = score_TG.topk(config.kept_groups, dim=-1).indices
        dropped_TG = torch.ones_like(score_TG, dtype=torch.bool).scatter_(1, kept, False)
        # −inf, not 0: biased scores may be negative.
        choice_TE = choice_TGE.masked_fill(dropped_TG[..., None], -torch.inf).flatten(1)
    experts_TA = choice_TE.topk(config.active_experts, dim=-1).indices
    weights_TA = scores_TE.gather(1, experts_TA)
    if config.normalise_weights:
        weights_TA = weights_TA / (weights_TA.sum(dim=-1, keepdim=True) + 1e-20)
    if real_T is not None:
        experts_TA = experts_TA.where(real_T[:, None], NO_EXPERT)
    return weights_TA * config.routed_scale, experts_TA


class Experts(nn.Module):
    """This rank's contiguous range of the routed experts, whole."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype, ranks: Ranks) -> None:
        super().__init__()
        self.total = config.experts
        self.count = config.experts // ranks.world_size
        self.first = ranks.rank * self.count
        inner, hidden, quantised = config.expert_intermediate, config.hidden, config.fp8
        self.gate_up_proj = Weight(self.count, 2, inner, hidden, dtype=dtype, quantised=quantised)
        self.down_proj = Weight(self.count, hidden, inner, dtype=dtype, quantised=quantised)

    def forward(self, x_TD: Tensor, weights_TA: Tensor, experts_TA: Tensor) -> gemm.Pairs:
        """What the chosen experts of this rank return, not added up yet.

        Pairs of `NO_EXPERT` are left out.
        """
        sort = plain_sort
        if kernels.used(x_TD):
            from ref_dsinfer.kernels import routing  # Triton is installed only where GPUs are used

            sort = routing.sort
        # Sorted by expert, so that each has one run of rows.
        tokens_P, places_TA, ends_E = sort(experts_TA, self.first, self.count)
        expected = experts_TA.numel() * self.count // self.total

        def product(x: Tensor, weight: Weight, tokens: Tensor | None, gated: bool) -> Tensor:
            return gemm.grouped(
                *(x, weight.weight, weight.weight_scale_inv, ends_E, tokens),
                *(weight.arithmetic, gated, expected),
            )

        inner_PI = product(x_TD, self.gate_up_proj, tokens_P, gated=True)
        y_PD = product(inner_PI, self.down_proj, None, gated=False)
        return gemm.Pairs(y_PD, places_TA, weights_TA)


def plain_sort(experts_TA: Tensor, first: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sort the pairs of the experts from `first` to `first + count`, leaving others out.

    Returns (tokens [P], the token of each pair, sorted by expert; places [T, A], where in this
    order a pair lies, −1 where it is left out; ends [count], where each expert's pairs end), the
    last two int32. Waits for the device, which kernels don't: their `tokens` has room for every
    pair.
    """
    local_TA = experts_TA - first
    elsewhere_TA = (local_TA < 0) | (local_TA >= count)
    sorted_P, order_P = local_TA.masked_fill(elsewhere_TA, count).flatten().sort(stable=True)
    numbers_E = torch.arange(count, device=experts_TA.device)
    ends_E = torch.searchsorted(sorted_P, numbers_E, right=True).int()
    places_TA = order_P.argsort().int().view(experts_TA.shape).masked_fill(elsewhere_TA, -1)
    return order_P[: ends_E[-1]] // experts_TA.shape[1], places_TA, ends_E


class MoE(nn.Module):
    """Routed and shared experts; returns one fp32 partial sum of both."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype, ranks: Ranks) -> None:
        super().__init__()
        self.gate = Gate(config)
        self.experts = Experts(config, dtype, ranks)
        shared = config.shared_experts * config.expert_intermediate
        self.shared_experts = MLP(config, shared, dtype, ranks)

    def forward(self, x_TD: Tensor, real_T: Tensor | None = None) -> Tensor:
        """`real_T`, bool, says which tokens are no padding: only these have experts."""
        pairs = self.experts(x_TD, *self.gate(x_TD, real_T))
        return self.shared_experts.down(self.shared_experts.inner(x_TD), pairs)
