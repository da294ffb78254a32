"""Mixture of experts: group-limited routing, routed and shared experts (arXiv 2412.19437, 2.1.2).

Shape letters: T tokens, A active experts a token, E experts, G groups, P pairs of token and expert
of this rank, D hidden, I intermediate.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ref_dsinfer.config import ModelConfig
from ref_dsinfer.layers import MLP, Weight, gated, parameter
from ref_dsinfer.parallel import Ranks


class Gate(nn.Module):
    """Chooses each token's experts. All in fp32: rounding the bias alone changes the choice."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.weight = parameter((config.experts, config.hidden), torch.float32)
        self.e_score_correction_bias = (
            parameter((config.experts,), torch.float32) if config.routing_bias else None
        )

    def forward(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        """Returns (weights [T, A] fp32, experts [T, A] int64), in no particular order."""
        return route(F.linear(x_TD.float(), self.weight), self.e_score_correction_bias, self.config)


def route(logits_TE: Tensor, bias_E: Tensor | None, config: ModelConfig) -> tuple[Tensor, Tensor]:
    """The bias takes part in the choice only; weights come from the plain scores."""
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
    return weights_TA * config.routed_scale, experts_TA


class Experts(nn.Module):
    """This rank's contiguous range of the routed experts, whole."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype, ranks: Ranks) -> None:
        super().__init__()
        self.count = config.experts // ranks.world
        self.first = ranks.rank * self.count
        inner, hidden, quantised = config.expert_intermediate, config.hidden, config.fp8
        self.gate_up_proj = Weight(self.count, 2, inner, hidden, dtype=dtype, quantised=quantised)
        self.down_proj = Weight(self.count, hidden, inner, dtype=dtype, quantised=quantised)

    def forward(self, x_TD: Tensor, weights_TA: Tensor, experts_TA: Tensor) -> Tensor:
        """Weighted sum of the chosen experts of this rank, fp32 [T, D]."""
        local = experts_TA.flatten() - self.first
        elsewhere = (local < 0) | (local >= self.count)
        # Pairs sorted by expert: each expert then has one run of rows; those of other ranks' last.
        order = local.masked_fill(elsewhere, self.count).argsort(stable=True)
        counts = torch.bincount(local.masked_fill(elsewhere, self.count), minlength=self.count)
        sizes = counts[: self.count].tolist()
        order = order[: sum(sizes)]
        token_P = order // experts_TA.shape[1]
        x_PD = x_TD[token_P]
        runs = [
            self._expert(number, run) for number, run in enumerate(x_PD.split(sizes)) if len(run)
        ]
        y_TD = torch.zeros_like(x_TD, dtype=torch.float32)
        if runs:
            y_PD = torch.cat(runs).float() * weights_TA.flatten()[order, None]
            y_TD.index_add_(0, token_P, y_PD)
        return y_TD

    def _expert(self, number: int, x_PD: Tensor) -> Tensor:
        inner = gated(F.linear(x_PD, self.gate_up_proj.matrix(number).flatten(0, 1)))
        return F.linear(inner, self.down_proj.matrix(number))


class MoE(nn.Module):
    """Routed and shared experts; returns one fp32 partial sum of both, to be reduced once."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype, ranks: Ranks) -> None:
        super().__init__()
        self.gate = Gate(config)
        self.experts = Experts(config, dtype, ranks)
        shared = config.shared_experts * config.expert_intermediate
        self.shared_experts = MLP(config, shared, dtype, ranks)

    def forward(self, x_TD: Tensor) -> Tensor:
        return self.experts(x_TD, *self.gate(x_TD)) + self.shared_experts(x_TD)
