"""Decoding as the published PyTorch reference does it, for comparison: rows in batches of 16.

What makes it slow is kept: a batch ends with its longest answer; prompts longer than the shortest
of a batch are fed a token a step; the cache is one slab for 16 rows of the greatest length; experts
run one after the other, after their counts have come to the host; attention is plain products.
Weights, norms and routing are this project's own.
"""

from pathlib import Path

import torch
from torch import Tensor

from ref_dsinfer import gemm
from ref_dsinfer.attention import Attention
from ref_dsinfer.config import ModelConfig
from ref_dsinfer.layers import Weight
from ref_dsinfer.model import Layer, Model
from ref_dsinfer.moe import MoE
from ref_dsinfer.parallel import RankInfo, Ranks
from ref_dsinfer.rope import plain_rotate

ROWS = 16

# Shape letters: N rows, T tokens a row, L positions so far, H heads, C latent, R rotated key,
# D hidden.


class StaticBatch:
    """A model that answers `ROWS` prompts at a time."""

    def __init__(self, model_dir: Path, dtype: torch.dtype, length: int) -> None:
        """`length`: the longest prompt and answer together, in tokens."""
        config = ModelConfig.read(model_dir)
        ranks = Ranks(RankInfo(), torch.device("cpu"))
        self.config, self.model = config, Model.load(model_dir, config, dtype, ranks, length)
        slab = (config.layers, ROWS, length, config.latent_dim)
        self.cache = torch.zeros(slab, dtype=dtype)

    @torch.inference_mode()
    def answer(self, prompts: list[list[int]], lengths: list[int]) -> list[list[int]]:
        """Greedy answers of the given lengths, batch after batch."""
        answers = []
        for first in range(0, len(prompts), ROWS):
            answers += self._batch(prompts[first : first + ROWS], lengths[first : first + ROWS])
        return answers

    def _batch(self, prompts: list[list[int]], lengths: list[int]) -> list[list[int]]:
        ends = [len(prompt) + length for prompt, length in zip(prompts, lengths, strict=True)]
        tokens = torch.full((len(prompts), max(ends)), -1)
        for row, prompt in zip(tokens, prompts, strict=True):
            row[: len(prompt)] = torch.tensor(prompt)
        is_prompt = tokens >= 0
        start = 0
        for position in range(min(map(len, prompts)), max(ends)):
            logits = self._forward(tokens[:, start:position], start)
            chosen = logits.argmax(dim=-1)
            tokens[:, position] = torch.where(is_prompt[:, position], tokens[:, position], chosen)
            start = position
        return [
            row[len(prompt) : end].tolist()
            for row, prompt, end in zip(tokens, prompts, ends, strict=True)
        ]

    def _forward(self, tokens_NT: Tensor, start: int) -> Tensor:
        """Logits [N, V] after the last token."""
        model = self.model
        x = model.embed_tokens(tokens_NT, tokens_NT.shape[1])
        rotations = model.rotations[start : start + tokens_NT.shape[1]]
        for number, layer in enumerate(model.layers):
            assert isinstance(layer, Layer)
            normal = layer.input_layernorm(x)
            x = x + self._attend(layer.self_attn, normal, rotations, number, start)
            normal = layer.post_attention_layernorm(x)
            mixed = self._experts(layer.mlp, normal) if isinstance(layer.mlp, MoE) else None
            x = x + (layer.mlp(normal) if mixed is None else mixed)
        return model.logits(model.norm(x[:, -1]))

    def _attend(
        self, attention: Attention, x: Tensor, rotations: Tensor, layer: int, start: int
    ) -> Tensor:
        config = self.config
        rows, count = x.shape[:2]
        if config.q_lora is None:
            q = attention.q_proj(x)
        else:
            q = attention.q_b_proj(attention.q_a_layernorm(attention.q_a_proj(x)))
        q_nope, q_rope = q.unflatten(-1, (config.heads, -1)).split(
            [config.nope_dim, config.rope_dim], dim=-1
        )
        q_rope = plain_rotate(q_rope, rotations[:, None])
        latent, k_rope = attention.kv_a_proj_with_mqa(x).split(
            [config.kv_lora, config.rope_dim], dim=-1
        )
        stored = self.cache[layer, :rows, start : start + count]
        stored[..., : config.kv_lora] = attention.kv_a_layernorm(latent)
        stored[..., config.kv_lora :] = plain_rotate(k_rope, rotations)
        seen = self.cache[layer, :rows, : start + count]
        latents, keys = seen.split([config.kv_lora, config.rope_dim], dim=-1)
        q_latent = torch.einsum("nthk,hkc->nthc", q_nope, attention.w_HKC)
        scores = torch.einsum("nthc,nlc->nthl", q_latent, latents)
        scores = scores + torch.einsum("nthr,nlr->nthl", q_rope, keys)
        scores = scores * config.softmax_scale
        if count > 1:
            mask = torch.full((count, start + count), -torch.inf).triu_(start + 1)
            scores = scores + mask[:, None]
        weights = scores.softmax(dim=-1, dtype=torch.float32).to(x.dtype)
        values = torch.einsum("nthl,nlc->nthc", weights, latents)
        values = torch.einsum("nthc,hwc->nthw", values, attention.w_HWC)
        return attention.o_proj(values.flatten(2))

    def _experts(self, moe: MoE, x: Tensor) -> Tensor:
        x_TD = x.flatten(0, 1)
        weights_TA, experts_TA = moe.gate(x_TD)
        y_TD = torch.zeros_like(x_TD)
        counts = torch.bincount(experts_TA.flatten(), minlength=self.config.experts).tolist()
        for number, count in enumerate(counts):
            if not count:
                continue
            rows, column = torch.where(experts_TA == number)
            inner = gemm.plain_gated(_product(x_TD[rows], moe.experts.gate_up_proj, number))
            y = _product(inner, moe.experts.down_proj, number)
            y_TD[rows] += (y * weights_TA[rows, column, None]).to(y.dtype)
        return (y_TD + moe.shared_experts(x_TD)).view_as(x)


def _product(x_TD: Tensor, weight: Weight, number: int) -> Tensor:
    """With the matrices of one expert, whose fp8 weights are dequantised each time."""
    scale = weight.weight_scale_inv
    return gemm.plain(x_TD, weight.weight[number], None if scale is None else scale[number])
