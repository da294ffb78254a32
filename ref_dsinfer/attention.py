"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434).

The cache keeps a token's normalised latent and one rotated key for all heads. A prompt is attended
to with keys and values unfolded from the latents; a decoded token instead folds the unfolding
matrix into its query and its output ("absorbed"), and attends to the latents themselves.

Shape letters: T tokens, N sequences, L context, H this rank's heads, C latent, K a head's
unrotated key, R rotated key, W a head's value.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ref_dsinfer.batch import Batch, Decode, Prefill
from ref_dsinfer.cache import SlotCache
from ref_dsinfer.config import ModelConfig
from ref_dsinfer.layers import Linear, RMSNorm
from ref_dsinfer.parallel import Ranks
from ref_dsinfer.rope import rotate


class Attention(nn.Module):
    """One layer's attention over this rank's heads; returns a partial sum."""

    def __init__(self, config: ModelConfig, layer: int, dtype: torch.dtype, ranks: Ranks) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        self.heads = config.heads // ranks.world

        def linear(outputs: int, inputs: int) -> Linear:
            return Linear(outputs, inputs, dtype=dtype, quantised=config.fp8)

        queries = self.heads * (config.nope_dim + config.rope_dim)
        if config.q_lora is None:
            self.q_proj = linear(queries, config.hidden)
        else:
            self.q_a_proj = linear(config.q_lora, config.hidden)
            self.q_a_layernorm = RMSNorm(config.q_lora, config.eps)
            self.q_b_proj = linear(queries, config.q_lora)
        self.kv_a_proj_with_mqa = linear(config.latent_dim, config.hidden)
        self.kv_a_layernorm = RMSNorm(config.kv_lora, config.eps)
        self.kv_b_proj = linear(self.heads * (config.nope_dim + config.v_dim), config.kv_lora)
        self.o_proj = linear(config.hidden, self.heads * config.v_dim)

    def prepare(self) -> None:
        """Call once after loading: unfolds kv_b, dequantised, into its key and value halves."""
        self.unfold = self.kv_b_proj.matrix()
        del self.kv_b_proj
        split = [self.config.nope_dim, self.config.v_dim]
        self.w_HKC, self.w_HWC = self.unfold.unflatten(0, (self.heads, -1)).split(split, dim=1)

    def forward(self, x_TD: Tensor, rotations: Tensor, batch: Batch, cache: SlotCache) -> Tensor:
        """Attend; writes the tokens' latents into the cache. `rotations` [T, R/2] are theirs."""
        config = self.config
        if config.q_lora is None:
            q = self.q_proj(x_TD)
        else:
            q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x_TD)))
        q_nope, q_rope = q.unflatten(-1, (self.heads, -1)).split(
            [config.nope_dim, config.rope_dim], dim=-1
        )
        q_rope = rotate(q_rope, rotations[:, None])
        latent, k_rope = self.kv_a_proj_with_mqa(x_TD).split(
            [config.kv_lora, config.rope_dim], dim=-1
        )
        latents = torch.cat([self.kv_a_layernorm(latent), rotate(k_rope, rotations)], dim=-1)
        cache.write(self.layer, batch.rows_T, latents)
        if isinstance(batch, Prefill):
            values = self.unabsorbed(q_nope, q_rope, latents, batch.lengths)
        else:
            assert isinstance(batch, Decode)
            context = cache.context(self.layer, *batch.mask_NL.shape)
            values = self.absorbed(q_nope, q_rope, context, batch.mask_NL)
        return self.o_proj(values.flatten(1))

    def unabsorbed(
        self, q_THK: Tensor, q_THR: Tensor, latents: Tensor, lengths: tuple[int, ...]
    ) -> Tensor:
        """Causal attention of prompts among themselves; returns [T, H, W]."""
        config = self.config
        latent, k_rope = latents.split([config.kv_lora, config.rope_dim], dim=-1)
        unfolded = F.linear(latent, self.unfold).unflatten(-1, (self.heads, -1))
        k_nope, v = unfolded.split([config.nope_dim, config.v_dim], dim=-1)
        k = torch.cat([k_nope, k_rope[:, None].expand(-1, self.heads, -1)], dim=-1)
        q = torch.cat([q_THK, q_THR], dim=-1)
        # Fused kernels want values as wide as keys; the zeros are cut off again.
        v = F.pad(v, (0, max(q.shape[-1] - config.v_dim, 0)))
        answers = [
            self._causal(*sequence)
            for sequence in zip(*(part.split(lengths) for part in (q, k, v)), strict=True)
        ]
        return torch.cat(answers)[..., : config.v_dim]

    def _causal(self, q_TH: Tensor, k_TH: Tensor, v_TH: Tensor) -> Tensor:
        """Causal attention within one prompt."""
        q, k, v = (part.transpose(0, 1)[None] for part in (q_TH, k_TH, v_TH))
        answer = F.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=self.config.softmax_scale
        )
        return answer[0].transpose(0, 1)

    def absorbed(self, q_NHK: Tensor, q_NHR: Tensor, context: Tensor, mask_NL: Tensor) -> Tensor:
        """Attention of one token a sequence over latents [N, L, C + R]; returns [N, H, W].

        Seen from the cache this is one key head that all queries share, whose values are the keys
        without their rotated part.
        """
        q_NHC = torch.bmm(q_NHK.transpose(0, 1), self.w_HKC).transpose(0, 1)
        q = torch.cat([q_NHC, q_NHR], dim=-1)[:, None]
        keys = context[:, None]
        answer = F.scaled_dot_product_attention(
            q, keys, keys, attn_mask=mask_NL[:, None, None], scale=self.config.softmax_scale
        )[:, 0, :, : self.config.kv_lora]
        return torch.bmm(answer.transpose(0, 1), self.w_HWC.transpose(1, 2)).transpose(0, 1)
