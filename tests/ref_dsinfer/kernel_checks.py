"""Every Triton kernel against its definition in plain torch, on any device.

As a program, with TRITON_INTERPRET=1, it runs them on a CPU, in a process of its own, since Triton
decides at import. The interpreter multiplies bf16 wrongly and rounds to e4m3 otherwise than GPUs
do: there fp16 and fp32 stand in, and values are quantised by the definition.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.r1 import R1
from ref_dsinfer import fp8_format, gemm, rope
from ref_dsinfer.attention import plain, plain_latents
from ref_dsinfer.gemm import Pairs, plain_combine, plain_gated
from ref_dsinfer.kernels import block_fp8, dense, fused, grouped, mla, routing
from ref_dsinfer.layers import RMSNorm
from ref_dsinfer.moe import NO_EXPERT, plain_route, plain_sort
from tests.effort import cases

# A weight's shape [..., out, in], rows of x. Edges of blocks, stacks, and sums in several parts.
DENSE = (((200, 300), 4), ((2, 64, 256), 20), ((576, 1300), 33), ((128, 128), 1), ((128, 640), 70))
ENDS = ([0, 3, 3, 20, 30], [0] * 5, [40] * 5, [1, 2, 3, 4, 5])  # of 40 rows, for five experts
# Tokens, experts, those of a token, this rank's first and how many are its own.
EXPERTS = ((9, 16, 4, 4, 4), (300, 8, 8, 0, 8), (5, 256, 8, 224, 32), (7, 64, 2, 32, 32))
ROUTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"experts": 20, "groups": 1, "kept_groups": 1, "active_experts": 3},
    {"experts": 36, "groups": 3, "kept_groups": 2, "active_experts": 6, "scoring": "softmax"},
    {"experts": 4, "groups": 4, "kept_groups": 3, "active_experts": 2, "normalise_weights": False},
)
# Sequences, heads, kept, rotated, a block's places, blocks each.
ATTENTION = ((3, 4, 64, 16, 16, 7), (1, 16, 512, 64, 64, 3), (5, 70, 48, 20, 8, 9))


def check_products(device: str, dtype: torch.dtype, arithmetic: gemm.Arithmetic) -> None:
    """Dense products, in each of the two arithmetics."""
    for shape, rows in DENSE:
        weight, scale = fp8_format.quantise(torch.randn(shape, device=device))
        x = torch.randn(rows, shape[-1], device=device).to(dtype)
        values, x_scale = fp8_format.quantise_rows(x) if arithmetic == "fp8" else (x, None)
        expected = gemm.plain(x.float(), weight, scale, arithmetic)
        bound = _bound(x, fp8_format.dequantise(weight, scale, torch.float32))
        result = dense.product(values, weight, scale, x_scale, dtype)
        _close(result, expected, bound, dtype)
        assert not dense.arrivals(result.device).any()
        if len(shape) > 2:
            # |silu(g) u| changes by no more than 1.1 |g| |u|
            gate, up = bound.chunk(2, dim=1)
            result = dense.product(values, weight, scale, x_scale, dtype, gated=True)
            _close(result, plain_gated(expected), 2 * gate * up + gate + up, dtype)
        else:
            pairs = _pairs(rows, shape[0], dtype, device)
            result = dense.product(values, weight, scale, x_scale, torch.float32, pairs=pairs)
            _close(result, plain_combine(pairs, expected), bound + 16, torch.float32)


def _pairs(tokens: int, width: int, dtype: torch.dtype, device: str) -> Pairs:
    """Three pairs a token, of which about half are another rank's."""
    places = torch.arange(3 * tokens, dtype=torch.int32, device=device).view(tokens, 3)
    places[torch.rand(tokens, 3, device=device) < 0.5] = -1
    rows = torch.randn(3 * tokens, width, device=device).to(dtype)
    return Pairs(rows, places, torch.rand(tokens, 3, device=device))


def check_groups(device: str, dtype: torch.dtype, arithmetic: gemm.Arithmetic) -> None:
    """Products of experts, of which some have no rows, and rows that no expert has."""
    weight, scale = fp8_format.quantise(torch.randn(5, 2, 150, 200, device=device))
    x = torch.randn(13, 200, device=device).to(dtype)
    tokens = torch.randint(0, 13, (40,), device=device)
    values, x_scale = fp8_format.quantise_rows(x) if arithmetic == "fp8" else (x, None)
    size = fp8_format.dequantise(weight, scale, torch.float32).abs().amax() * x.abs().amax() * 200
    for numbers in ENDS:
        ends = torch.tensor(numbers, dtype=torch.int32, device=device)
        for rows in (tokens, None):
            if rows is None and numbers[-1] > len(x):
                continue
            few = 1 if rows is None else None  # rows than are there: programs then take several
            expected = gemm.plain_grouped(x.float(), weight, scale, ends, rows, arithmetic)
            kept = slice(0, numbers[-1])
            for gated in (False, True):
                result = grouped.product(
                    *(values, weight, scale, ends, rows, x_scale, dtype, gated, few)
                )
                bound = 2 * size.float() ** 2 if gated else size.float()
                definition = plain_gated(expected) if gated else expected
                _close(result[kept], definition[kept], bound, dtype)


def check_experts(device: str, dtype: torch.dtype) -> None:
    """The order of pairs. Every third token is padding, whose expert there is none; in the last
    case no token chooses this rank's experts. And whole experts, whose pairs are added up."""
    for tokens, total, active, first, count in EXPERTS:
        chosen = torch.rand(tokens, total, device=device).topk(active).indices
        chosen[::3] = NO_EXPERT
        if (tokens, total) == EXPERTS[-1][:2]:
            chosen[chosen >= first] = 0
        sorted_P, places_TA, ends_E = plain_sort(chosen, first, count)
        pairs = len(sorted_P)
        result = routing.sort(chosen, first, count)
        assert torch.equal(result[0][:pairs].long(), sorted_P)
        assert torch.equal(result[1], places_TA)
        assert torch.equal(result[2], ends_E)
        y = torch.randn(tokens * active, 150, device=device).to(dtype)
        y[pairs:] = torch.nan
        weights = torch.rand(tokens, active, device=device)
        x, weight = (torch.randn(shape, device=device) for shape in ((tokens, 70), (150, 70)))
        combined = dense.product(
            *(x.to(dtype), weight.to(dtype), None),
            dtype=torch.float32,
            pairs=Pairs(y, places_TA, weights),
        )
        shared = x.to(dtype).float() @ weight.to(dtype).float().T
        expected = plain_combine(Pairs(y[:pairs].float(), places_TA, weights), shared)
        _close(combined, expected, torch.tensor(400.0), torch.float32)


def check_routing(device: str) -> None:
    """R1's routing, and others: no groups, no bias, sizes that are no powers of 2."""
    for changes in ROUTINGS:
        config = replace(R1, **changes)
        logits = torch.randn(9, config.experts, device=device)
        bias = torch.randn(config.experts, device=device) * 0.05 - 7
        real = torch.rand(9, device=device) < 0.7
        for own_bias, mask in ((bias, real), (bias, None), (None, real)):
            weights, chosen = routing.route(logits, own_bias, config, mask)
            expected, expected_chosen = plain_route(logits, own_bias, config, mask)
            order, expected_order = chosen.long().argsort(), expected_chosen.argsort()
            kept = slice(None) if mask is None else mask
            assert torch.equal(
                chosen.long().gather(1, order), expected_chosen.gather(1, expected_order)
            )
            result = weights.gather(1, order)[kept]
            torch.testing.assert_close(result, expected.gather(1, expected_order)[kept])


def check_fused(device: str, dtype: torch.dtype) -> None:
    """Norms and rotations, of rows that lie apart; slots of a cache in any order."""
    for tokens, heads, kept, rotated in ((3, 16, 512, 64), (1, 20, 48, 12), (0, 4, 64, 16)):
        norm = RMSNorm(kept, 1e-6)
        norm.weight.data = torch.randn(kept, device=device)
        x = torch.randn(tokens, 2 * kept, device=device).to(dtype)[:, kept:]
        part = torch.randn(tokens, kept, device=device).to(dtype)
        size = norm.weight.abs().amax() * 8
        for addend in (None, part, part.float()):
            total, normed = fused.add_norm(x, addend, norm.weight, norm.eps)
            assert torch.equal(total, norm.plain_added(x, addend)[0])
            _close(normed, norm.plain(total.float()), size, dtype)

        rotations = torch.randn(tokens, rotated // 2, dtype=torch.complex64, device=device)
        q = torch.randn(tokens, heads, 7 + rotated, device=device).to(dtype)[..., 7:]
        turned = rope.plain_rotate(q.float(), rotations[:, None])
        out = torch.zeros(tokens, heads, 3 + rotated, device=device, dtype=dtype)
        fused.rotate(q, rotations, out[..., 3:])
        _close(out[..., 3:], turned, torch.tensor(20.0), dtype)
        fused.rotate(q, rotations, q)
        assert torch.equal(q, out[..., 3:])
        assert not out[..., :3].any()

        x = torch.randn(tokens, kept + rotated, device=device).to(dtype)
        cache = torch.zeros(4, 8, kept + rotated, device=device, dtype=dtype)
        slots = torch.randperm(32, device=device)[:tokens]
        own = RMSNorm(kept + 1, 1e-6)
        own.weight.data = torch.randn(kept + 1, device=device)
        wide = torch.randn(tokens, kept + 9, device=device).to(dtype)[:, 8:]
        queries, result = fused.latents(
            *(x, norm.weight, norm.eps, rotations, cache, slots, (wide, own.weight))
        )
        assert queries is not None
        _close(queries, own.plain(wide.float()), size + 20, dtype)
        _close(result, plain_latents(x.float(), norm, rotations), size + 20, dtype)
        alone = fused.latents(x, norm.weight, norm.eps, rotations, cache, slots)
        assert alone[0] is None
        assert torch.equal(alone[1], result)
        assert torch.equal(cache.flatten(0, 1)[slots], result)
        assert cache.count_nonzero() == result.count_nonzero()


def check_unscaled_groups(device: str, dtype: torch.dtype) -> None:
    """Experts whose weights are not quantised, and fp32 products of such weights."""
    weight = torch.randn(5, 2, 50, 96, device=device).to(dtype)
    x = torch.randn(40, 96, device=device).to(dtype)
    ends = torch.tensor(ENDS[0], dtype=torch.int32, device=device)
    result = grouped.product(x, weight, None, ends)
    for number, (start, end) in enumerate(zip([0, *ENDS[0]], ENDS[0], strict=False)):
        expected = x[start:end].float() @ weight[number].flatten(0, 1).float().T
        _close(result[start:end], expected, torch.tensor(96.0), dtype)
    logits = dense.product(x, weight[0, 0], None, dtype=torch.float32)
    _close(logits, x.float() @ weight[0, 0].float().T, torch.tensor(96.0), torch.float32)


def check_rounding(device: str, exact: bool) -> None:
    """Activations become the definition's values and scales; `exact`: rounded by the kernel."""
    x = torch.randn(7, 300, device=device) * torch.logspace(-6, 4, 7, device=device)[:, None]
    x[3] = 0
    values, scale = fp8_format.quantise_rows(x)
    if exact:
        result, found_scale = block_fp8.quantise_rows(x)
    else:
        result, found_scale = torch.empty_like(x), torch.empty_like(scale)
        block_fp8._quantise[scale.shape](
            *(x, result, found_scale, scale, len(x), x.shape[1]),
            COUNTED=False,
            LARGEST=fp8_format.LARGEST,
            SMALLEST=fp8_format.SMALLEST_AMAX,
        )
    assert torch.equal(found_scale, scale)
    assert torch.equal(result.to(fp8_format.E4M3).view(torch.uint8), values.view(torch.uint8))


def check_attention(device: str, dtype: torch.dtype) -> None:
    """Blocks in any order; what lies behind a sequence's last token does not matter."""
    for count, heads, kept, rotated, size, columns in ATTENTION:
        blocks = torch.randn(columns * count + 1, size, kept + rotated, device=device).to(dtype)
        table = torch.randperm(len(blocks), device=device)[: columns * count].view(count, columns)
        lengths = torch.randint(1, columns * size + 1, (count,), device=device)
        lengths[-1] = columns * size
        lengths[0] = 1
        q = torch.randn(count, heads, kept + rotated, device=device).to(dtype)
        expected = plain(q.float(), blocks.float(), table, lengths, kept, 0.1)
        blocks[table[0]] = blocks[table[0]].where(
            torch.arange(columns * size, device=device).view(columns, size, 1) < 1, torch.nan
        )
        order = lengths.argsort(descending=True)
        result = mla.attend(q, blocks, table, lengths, order, kept, 0.1)
        _close(result, expected, blocks.nan_to_num().abs().amax().float(), dtype)


def _bound(x: Tensor, matrix: Tensor) -> Tensor:
    """|x| · |W|: what a sum's rounding errors are relative to."""
    return x.float().abs() @ matrix.flatten(0, -2).abs().T


def _close(result: Tensor, expected: Tensor, bound: Tensor, dtype: torch.dtype) -> None:
    # Half a step of the result, and of fp32 sums; fp8 sums have 14 bits inside a tensor core.
    step = torch.finfo(dtype).eps
    gap = (result.float() - expected).abs()
    assert (gap <= step * expected.abs() + max(step / 8, 2**-20) * bound).all(), gap.max()
    assert result.dtype == dtype


def in_the_interpreter() -> None:
    checks: list[Callable[[], None]] = [
        partial(check_rounding, "cpu", exact=False),
        partial(check_routing, "cpu"),
    ]
    for dtype in (torch.float16, torch.float32)[: cases(1, 2)]:
        checks.append(partial(check_unscaled_groups, "cpu", dtype))
        checks.append(partial(check_experts, "cpu", dtype))
        checks.append(partial(check_fused, "cpu", dtype))
        checks.append(partial(check_attention, "cpu", dtype))
        for arithmetic in gemm.ARITHMETICS:
            checks.append(partial(check_products, "cpu", dtype, arithmetic))
            checks.append(partial(check_groups, "cpu", dtype, arithmetic))
    for check in checks:
        torch.manual_seed(0)
        check()


if __name__ == "__main__":
    in_the_interpreter()
