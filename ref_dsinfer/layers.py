"""Building blocks. Row-parallel products return a rank's partial sum; the caller adds several of
them up before one all-reduce.

Shape letters: T tokens, G tokens of all ranks, N sequences, D hidden, H this rank's heads,
I intermediate, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ref_dsinfer import fp8_format, gemm, kernels
from ref_dsinfer.config import ModelConfig
from ref_dsinfer.parallel import Ranks


class Weight(nn.Module):
    """A matrix [out, in], or a stack of them, in the model's dtype or in block-fp8.

    Sizes are this rank's. fp8 stays fp8 in memory; `arithmetic` is how it is multiplied.
    """

    weight_scale_inv: nn.Parameter | None
    arithmetic: gemm.Arithmetic = "bf16"  # see gemm.py

    def __init__(self, *shape: int, dtype: torch.dtype, quantised: bool = False) -> None:
        super().__init__()
        self.dtype = dtype
        self.weight = parameter(shape, fp8_format.E4M3 if quantised else dtype)
        scales = parameter(fp8_format.scale_shape(shape), torch.float32) if quantised else None
        self.weight_scale_inv = scales

    def matrix(self) -> Tensor:
        """The weight in the model's dtype."""
        if self.weight_scale_inv is None:
            return self.weight
        return fp8_format.dequantise(self.weight, self.weight_scale_inv, self.dtype)

    def product(
        self,
        x_TD: Tensor,
        dtype: torch.dtype | None = None,
        gated: bool = False,
        pairs: gemm.Pairs | None = None,
    ) -> Tensor:
        """`gemm.dense` of x [T, in] and the matrix, or each of the stack."""
        return gemm.dense(
            *(x_TD, self.weight, self.weight_scale_inv, self.arithmetic),
            *(dtype, gated, pairs),
        )


def parameter(shape: tuple[int, ...], dtype: torch.dtype) -> nn.Parameter:
    """An uninitialised parameter without a gradient."""
    return nn.Parameter(torch.empty(shape, dtype=dtype), requires_grad=False)


class Linear(Weight):
    """x [T, in] → [T, out], in `dtype` or x's."""

    def forward(self, x_TD: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        return self.product(x_TD, dtype)


def narrow(weight: nn.Parameter) -> None:
    """Keep an fp32 weight in bf16 if that changes none of its values, for `gemm.in_fp32`.

    R1's checkpoint has such weights in bf16.
    """
    narrowed = weight.bfloat16()
    if torch.equal(narrowed.float(), weight):
        weight.data = narrowed


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last dimension, in fp32 with an fp32 weight."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = parameter((size,), torch.float32)

    def forward(self, x_TD: Tensor) -> Tensor:
        return self.added(x_TD, None)[1]

    def added(self, x_TD: Tensor, part_TD: Tensor | None) -> tuple[Tensor, Tensor]:
        """x + part, or x without one, in x's dtype, and its norm."""
        if kernels.used(x_TD):
            from ref_dsinfer.kernels import fused  # Triton is installed only where GPUs are used

            return fused.add_norm(x_TD, part_TD, self.weight, self.eps)
        return self.plain_added(x_TD, part_TD)

    def plain(self, x: Tensor) -> Tensor:
        """The definition of the norm, on any device."""
        return F.rms_norm(x.float(), self.weight.shape, self.weight, self.eps).to(x.dtype)

    def plain_added(self, x_TD: Tensor, part_TD: Tensor | None) -> tuple[Tensor, Tensor]:
        """The definition of `added`, on any device."""
        if part_TD is not None:
            x_TD = (x_TD + part_TD).to(x_TD.dtype)
        return x_TD, self.plain(x_TD)


class MLP(nn.Module):
    """down(silu(gate x) · up x), this rank's part of `intermediate`; a partial sum."""

    def __init__(
        self, config: ModelConfig, intermediate: int, dtype: torch.dtype, ranks: Ranks
    ) -> None:
        super().__init__()
        inner = intermediate // ranks.world_size
        # One product but two matrices, so that no fp8 block contains parts of both.
        self.gate_up_proj = Weight(2, inner, config.hidden, dtype=dtype, quantised=config.fp8)
        self.down_proj = Linear(config.hidden, inner, dtype=dtype, quantised=config.fp8)

    def forward(self, x_TD: Tensor, real_T: Tensor | None = None) -> Tensor:
        """`real_T` (see `Batch.real_G`) makes no difference here: padding costs next to nothing."""
        return self.down(self.inner(x_TD))

    def inner(self, x_TD: Tensor) -> Tensor:
        """silu(gate x) · up x: [T, I]."""
        return self.gate_up_proj.product(x_TD, gated=True)

    def down(self, inner_TI: Tensor, pairs: gemm.Pairs | None = None) -> Tensor:
        """The rest: fp32 [T, D], since it is a partial sum. Each token's `pairs` are added up with
        it."""
        return self.down_proj.product(inner_TI, torch.float32, pairs=pairs)


class Embedding(nn.Module):
    """Vocabulary-parallel: each rank has a contiguous range of the ids."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype, ranks: Ranks) -> None:
        super().__init__()
        self.ranks = ranks
        self.size = config.vocab_size // ranks.world_size
        self.weight = parameter((self.size, config.hidden), dtype)

    def forward(self, tokens_T: Tensor, width: int) -> Tensor:
        """Hidden states [T, D]; `width`: see `Batch`."""
        if self.ranks.world_size == 1:
            return F.embedding(tokens_T, self.weight)
        local_G = self.ranks.gather_tokens(tokens_T, width) - self.ranks.rank * self.size
        mine_G = (local_G >= 0) & (local_G < self.size)
        part_GD = F.embedding(local_G.where(mine_G, 0), self.weight) * mine_G[:, None]
        return self.ranks.scatter_tokens(part_GD, len(tokens_T), self.weight.dtype)


class Head(nn.Module):
    """Logits of this rank's contiguous range of the vocabulary. fp32: bf16 logits tie at the top
    far too often."""

    def __init__(self, config: ModelConfig, ranks: Ranks) -> None:
        super().__init__()
        self.weight = parameter(
            (config.vocab_size // ranks.world_size, config.hidden), torch.float32
        )

    def forward(self, x_ND: Tensor) -> Tensor:
        return gemm.in_fp32(x_ND, self.weight)
