"""The choice of experts in one kernel, and the order of their tokens in another, on NVIDIA GPUs;
`moe.py` has the definitions in plain torch.

Shape letters: T tokens, A active experts a token, P pairs of token and expert, E experts, G groups,
S a group's experts.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ref_dsinfer.config import ModelConfig

SORT_BLOCK = 1024  # pairs a program looks at together


@triton.jit
def _route(
    logits_ptr,  # [T, G · S]
    bias_ptr,  # [G · S]
    real_ptr,  # [T]
    weights_ptr,  # [T, ACTIVE]
    experts_ptr,  # [T, ACTIVE]
    scale,
    GROUPS: tl.constexpr,
    SIZE: tl.constexpr,
    KEPT: tl.constexpr,  # groups
    ACTIVE: tl.constexpr,
    BIASED: tl.constexpr,
    MASKED: tl.constexpr,  # real_ptr is read
    SIGMOID: tl.constexpr,
    NORMALISED: tl.constexpr,
    BLOCK_G: tl.constexpr,  # powers of 2 that hold GROUPS, SIZE and ACTIVE
    BLOCK_S: tl.constexpr,
    BLOCK_A: tl.constexpr,
):
    """One token's experts: the best of the best groups, one after another."""
    token = tl.program_id(0).to(tl.int64)
    group_G = tl.arange(0, BLOCK_G)
    place_S = tl.arange(0, BLOCK_S)
    real_GS = (group_G < GROUPS)[:, None] & (place_S < SIZE)[None, :]
    expert_GS = group_G[:, None] * SIZE + place_S[None, :]
    logit_GS = tl.load(
        logits_ptr + token * GROUPS * SIZE + expert_GS, mask=real_GS, other=float("-inf")
    )
    if SIGMOID:
        score_GS = 1.0 / (1.0 + tl.exp(-logit_GS))
    else:
        score_GS = tl.exp(logit_GS - tl.max(logit_GS))
        score_GS /= tl.sum(score_GS)
    choice_GS = tl.where(real_GS, score_GS, float("-inf"))
    if BIASED:
        choice_GS += tl.load(bias_ptr + expert_GS, mask=real_GS, other=0.0)

    if GROUPS > 1:
        best_G = tl.max(choice_GS, 1)
        if BIASED and SIZE > 1:
            first_G = tl.argmax(choice_GS, 1)
            others_GS = tl.where(place_S[None, :] == first_G[:, None], float("-inf"), choice_GS)
            best_G += tl.max(others_GS, 1)
        kept_G = group_G < 0
        for _ in tl.static_range(KEPT):
            chosen = group_G == tl.argmax(best_G, 0)
            kept_G = kept_G | chosen
            best_G = tl.where(chosen, float("-inf"), best_G)
        choice_GS = tl.where(kept_G[:, None], choice_GS, float("-inf"))

    choice_E = tl.reshape(choice_GS, [BLOCK_G * BLOCK_S])
    score_E = tl.reshape(score_GS, [BLOCK_G * BLOCK_S])
    at_E = tl.arange(0, BLOCK_G * BLOCK_S)
    number_A = tl.arange(0, BLOCK_A)
    expert_A = tl.zeros((BLOCK_A,), tl.int32)
    weight_A = tl.zeros((BLOCK_A,), tl.float32)
    for number in tl.static_range(ACTIVE):
        best = tl.argmax(choice_E, 0)
        weight = tl.sum(tl.where(at_E == best, score_E, 0.0), 0)
        choice_E = tl.where(at_E == best, float("-inf"), choice_E)
        expert_A = tl.where(number_A == number, best // BLOCK_S * SIZE + best % BLOCK_S, expert_A)
        weight_A = tl.where(number_A == number, weight, weight_A)
    if NORMALISED:
        weight_A /= tl.sum(weight_A, 0) + 1e-20
    if MASKED:
        expert_A = tl.where(tl.load(real_ptr + token) != 0, expert_A, -1)  # moe.NO_EXPERT
    at_A = token * ACTIVE + number_A
    tl.store(weights_ptr + at_A, weight_A * scale, mask=number_A < ACTIVE)
    tl.store(experts_ptr + at_A, expert_A, mask=number_A < ACTIVE)


@triton.jit(do_not_specialize=["pairs", "first"])
def _sort(
    experts_ptr,  # [pairs]
    tokens_ptr,  # [pairs]: the token of each local pair, sorted by expert
    places_ptr,  # [pairs]: where a pair lies in that order; -1 where its expert is elsewhere
    ends_ptr,  # [count]
    pairs,
    first,
    count,
    ACTIVE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A counting sort: each program places the pairs of one expert."""
    own = first + tl.program_id(0)
    before_P = tl.zeros((BLOCK,), tl.int32)
    for at in range(0, pairs, BLOCK):
        pair_P = at + tl.arange(0, BLOCK)
        expert_P = tl.load(experts_ptr + pair_P, mask=pair_P < pairs, other=-1)
        before_P += ((expert_P >= first) & (expert_P < own)).to(tl.int32)
    placed = tl.sum(before_P, 0)
    for at in range(0, pairs, BLOCK):
        pair_P = at + tl.arange(0, BLOCK)
        expert_P = tl.load(experts_ptr + pair_P, mask=pair_P < pairs, other=-1)
        mine_P = expert_P == own
        place_P = placed + tl.cumsum(mine_P.to(tl.int32), 0) - 1
        tl.store(places_ptr + pair_P, place_P, mask=mine_P)
        tl.store(tokens_ptr + place_P, pair_P // ACTIVE, mask=mine_P)
        placed += tl.sum(mine_P.to(tl.int32), 0)
        if own == first:
            elsewhere_P = (expert_P < first) | (expert_P >= first + count)
            tl.store(places_ptr + pair_P, -1, mask=elsewhere_P & (pair_P < pairs))
    tl.store(ends_ptr + tl.program_id(0), placed)


def route(
    logits_TE: Tensor, bias_E: Tensor | None, config: ModelConfig, real_T: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`moe.plain_route`, with int32 experts; of equal choices the lowest number wins."""
    tokens, active = len(logits_TE), config.active_experts
    weights_TA = logits_TE.new_empty(tokens, active)
    experts_TA = logits_TE.new_empty(tokens, active, dtype=torch.int32)
    if tokens:
        size = config.experts // config.groups
        _route[(tokens,)](
            *(logits_TE.contiguous(), logits_TE if bias_E is None else bias_E),
            *(logits_TE if real_T is None else real_T, weights_TA, experts_TA),
            config.routed_scale,
            GROUPS=config.groups,
            SIZE=size,
            KEPT=config.kept_groups,
            ACTIVE=active,
            BIASED=bias_E is not None,
            MASKED=real_T is not None,
            SIGMOID=config.scoring == "sigmoid",
            NORMALISED=config.normalise_weights,
            BLOCK_G=triton.next_power_of_2(config.groups),
            BLOCK_S=triton.next_power_of_2(size),
            BLOCK_A=triton.next_power_of_2(active),
            num_warps=1,
        )
    return weights_TA, experts_TA


def sort(experts_TA: Tensor, first: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """`moe.plain_sort` in one kernel; tokens behind the last run are left uninitialised."""
    experts_TA = experts_TA.contiguous()
    pairs = experts_TA.numel()
    tokens_P = experts_TA.new_empty(pairs, dtype=torch.int32)
    places_TA = experts_TA.new_empty(experts_TA.shape, dtype=torch.int32)
    ends_E = experts_TA.new_empty(count, dtype=torch.int32)
    _sort[(count,)](
        *(experts_TA, tokens_P, places_TA, ends_E),
        *(pairs, first, count),
        ACTIVE=experts_TA.shape[1],
        BLOCK=SORT_BLOCK,
    )
    return tokens_P, places_TA, ends_E
