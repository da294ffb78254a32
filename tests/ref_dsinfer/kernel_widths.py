"""The kernels at R1's true sizes, in Triton's interpreter (TRITON_INTERPRET=1): 256 experts, most
of them without rows, 16 and 128 heads, no rows at all, and offsets beyond 2^31 elements.

The large tensors are zeros that take no memory but where they are written to.
"""

import torch
from torch import Tensor

from benchmarks.r1 import R1
from ref_dsinfer import cache, fp8_format, gemm, rope
from ref_dsinfer.attention import plain, plain_latents
from ref_dsinfer.gemm import Pairs, plain_combine, plain_gated
from ref_dsinfer.kernels import block_fp8, dense, fused, grouped, mla, routing
from ref_dsinfer.layers import RMSNorm
from ref_dsinfer.moe import NO_EXPERT, plain_sort

CPU = torch.device("cpu")
TOLERANCE = 5e-4  # of the largest value
BLOCKS = 105_000  # of 64 latents: 3.9e9 elements


def near(found: Tensor, expected: Tensor, what: str) -> None:
    gap = (found.float() - expected.float()).abs().max() / expected.float().abs().max()
    assert gap <= TOLERANCE, f"{what}: {gap:.1e}"
    print(f"{what}: {gap:.1e}", flush=True)


def stacked(shape: tuple[int, ...], numbers: list[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """256 matrices and their scales, zeros but for some, and those again."""
    values = cache.zeros((R1.experts, *shape), fp8_format.E4M3, CPU)
    scales = torch.zeros(R1.experts, *fp8_format.scale_shape(shape))
    one, scale = fp8_format.quantise(torch.randn(shape))
    for number in numbers:
        values[number], scales[number] = one, scale
    return values, scales, one, scale


def check_experts() -> None:
    """Of two tokens' four pairs one has no expert; the third token is padding."""
    chosen = torch.tensor([[147, 255], [255, NO_EXPERT], [NO_EXPERT, NO_EXPERT]])
    weights = torch.rand(3, 2)
    tokens, places, ends = routing.sort(chosen, 0, R1.experts)
    expected_tokens, expected_places, expected_ends = plain_sort(chosen, 0, R1.experts)
    assert torch.equal(tokens[:3], expected_tokens.int())
    assert torch.equal(places, expected_places)
    assert torch.equal(ends, expected_ends)
    x = torch.randn(3, R1.hidden)
    values, scales, one, scale = stacked((2, R1.expert_intermediate, R1.hidden), [147, 255])
    assert values.stride(0) * 147 > 2**31
    inner = grouped.product(x, values, scales, ends, tokens, gated=True, expected=3)
    expected = plain_gated(gemm.plain(x[tokens[:3].long()], one, scale))
    near(inner[:3], expected, "experts' gate and up")
    values, scales, one, scale = stacked((R1.hidden, R1.expert_intermediate), [147, 255])
    y = grouped.product(inner, values, scales, ends, expected=3)
    near(y[:3], gemm.plain(inner[:3], one, scale), "experts' down")
    weight, scale = fp8_format.quantise(torch.randn(R1.hidden, 256))
    x = torch.randn(3, 256)
    sum_TD = dense.product(x, weight, scale, pairs=Pairs(y, places, weights))
    pairs = Pairs(y[:3], places, weights)
    near(sum_TD, plain_combine(pairs, gemm.plain(x, weight, scale)), "their sum")


def check_products() -> None:
    """The dense products of a rank of eight, one row each, or more rows than share one way to split
    sums."""
    for shape in ((1536, 7168), (576, 7168), (3072, 1536), (7168, 2048), (2, 256, 7168)):
        weight, scale = fp8_format.quantise(torch.randn(shape))
        x = torch.randn(1, shape[-1])
        gated = len(shape) > 2
        expected = gemm.plain(x, weight, scale)
        expected = plain_gated(expected) if gated else expected
        near(dense.product(x, weight, scale, gated=gated), expected, f"dense {shape}")
    gate = torch.randn(R1.experts, R1.hidden)
    for rows in (2, dense.SPLIT_ROWS + 1):
        x = torch.randn(rows, R1.hidden)
        near(dense.product(x, gate, None, dtype=torch.float32), gemm.in_fp32(x, gate), "gate")


def check_attention() -> None:
    """Two sequences that share blocks at the end of a large cache, into which latents are also
    written."""
    width = R1.latent_dim
    blocks = cache.zeros((BLOCKS, 64, width), torch.float32, CPU)
    used = torch.tensor([[BLOCKS - 1, BLOCKS - 5, BLOCKS - 9], [7, BLOCKS - 2, BLOCKS - 1]])
    blocks[used.flatten()] = torch.randn(6, 64, width)
    for heads in (16, 128):
        for lengths in ([1, 192], [65, 129]):
            q = torch.randn(2, heads, width)
            counts = torch.tensor(lengths)
            order = counts.argsort(descending=True)
            output = mla.attend(q, blocks, used, counts, order, R1.kv_lora, 0.1352)
            own = blocks[used.flatten()]
            table = torch.arange(6).view(2, 3)
            expected = plain(q, own, table, counts, R1.kv_lora, 0.1352)
            near(output, expected, f"attention of {heads} heads to {lengths}")
    norm = RMSNorm(R1.kv_lora, 1e-6)
    norm.weight.data = torch.rand(R1.kv_lora)
    x = torch.randn(2, width)
    rotations = rope.table(R1, 20_000)[[3, 19_999]]
    slots = torch.tensor([BLOCKS * 64 - 1, 5])
    q_norm = RMSNorm(R1.q_lora or 0, 1e-6)
    q_norm.weight.data = torch.rand(R1.q_lora or 0)
    q = torch.randn(2, R1.q_lora or 0)
    queries, output = fused.latents(
        *(x, norm.weight, norm.eps, rotations, blocks, slots, (q, q_norm.weight))
    )
    assert queries is not None
    near(queries, q_norm.plain(q), "queries' latents")
    near(output, plain_latents(x, norm, rotations), "latents")
    assert torch.equal(blocks.flatten(0, 1)[slots], output)


def check_no_rows() -> None:
    """A rank without tokens, and one without pairs."""
    weight, scale = fp8_format.quantise(torch.randn(4, 2, 128, 256))
    none = torch.empty(0, 256)
    ends = torch.zeros(4, dtype=torch.int32)
    assert dense.product(none, weight[0], scale[0]).shape == (0, 256)
    assert grouped.product(none, weight, scale, ends).shape == (0, 256)
    assert block_fp8.quantise_rows(none)[0].shape == (0, 256)
    grouped.product(torch.randn(3, 256), weight, scale, ends)
    nothing = torch.full((3, 8), NO_EXPERT)
    _, places, ends = routing.sort(nothing, 224, 32)
    assert (places == -1).all()
    assert not ends.any()
    pairs = Pairs(torch.full((24, 128), torch.nan), places, torch.rand(3, 8))
    x = torch.randn(3, 256)
    product = dense.product(x, weight[0, 0], scale[0, 0], pairs=pairs)
    near(product, gemm.plain(x, weight[0, 0], scale[0, 0]), "no pairs")
    _, places, ends = routing.sort(nothing[:0], 224, 32)
    assert not ends.any()
    assert routing.route(torch.empty(0, 256), None, R1, None)[1].shape == (0, 8)
    assert fused.add_norm(none, None, torch.ones(256), 1e-6)[1].shape == (0, 256)


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_num_threads(1)
    check_no_rows()
    check_attention()
    check_products()
    check_experts()
