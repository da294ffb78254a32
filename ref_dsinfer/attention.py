"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434).

The KV cache holds a token's normalised latent and one rotated key for all heads. Prefill projects
keys and values up from the latents. Decode instead absorbs the up-projection into query and output,
and attends to the latents themselves.

Shape letters: T tokens, N decoded tokens, L context, H this rank's heads, C latent, K a head's
unrotated key, R rotated key, W a head's value; in the KV cache B blocks of S slots, L a latent and
its rotated key, M blocks of the longest sequence.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ref_dsinfer import cpu_kernels, kernels
from ref_dsinfer.batch import Batch, Decodes, Prefill
from ref_dsinfer.cache import PagedCache
from ref_dsinfer.config import ModelConfig
from ref_dsinfer.keys import FP8_BLOCK
from ref_dsinfer.layers import Linear, RMSNorm
from ref_dsinfer.parallel import Ranks
from ref_dsinfer.rope import plain_rotate, rotate

CONTEXT_CHUNK = 2048  # tokens whose keys and values are projected up at once
LATENT_EPS = 1e-6  # of the latents' norms, whatever `rms_norm_eps` says, as in training


class Attention(nn.Module):
    """One layer's attention of this rank's tokens over its heads; returns a partial sum."""

    def __init__(self, config: ModelConfig, layer: int, dtype: torch.dtype, ranks: Ranks) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        self.heads = config.heads // ranks.attn_tp_size

        def linear(outputs: int, inputs: int) -> Linear:
            return Linear(outputs, inputs, dtype=dtype, quantised=config.fp8)

        queries = self.heads * (config.nope_dim + config.rope_dim)
        if config.q_lora is None:
            self.q_proj = linear(queries, config.hidden)
        else:
            self.q_a_proj = linear(config.q_lora, config.hidden)
            self.q_a_layernorm = RMSNorm(config.q_lora, LATENT_EPS)
            self.q_b_proj = linear(queries, config.q_lora)
        self.kv_a_proj_with_mqa = linear(config.latent_dim, config.hidden)
        self.kv_a_layernorm = RMSNorm(config.kv_lora, LATENT_EPS)
        self.kv_b_proj = linear(self.heads * (config.nope_dim + config.v_dim), config.kv_lora)
        self.o_proj = linear(config.hidden, self.heads * config.v_dim)
        # What is added up over ranks stays fp32 until then.
        self.part_dtype = torch.float32 if ranks.attn_tp_size > 1 else dtype
        self.q_kv_a_proj: Linear | None = None  # in place of q_a_proj and kv_a_proj_with_mqa

    def prepare(self) -> None:
        """Call once after loading: dequantizes kv_b and splits it into key and value halves; for
        GPUs, makes one matrix of q_a and kv_a."""
        if self.config.q_lora is not None and kernels.used(self.q_a_proj.weight):
            self.stack()
        self.unfold = self.kv_b_proj.matrix()
        del self.kv_b_proj
        split = [self.config.nope_dim, self.config.v_dim]
        self.w_HKC, self.w_HWC = self.unfold.unflatten(0, (self.heads, -1)).split(split, dim=1)

    def stack(self) -> None:
        """Replace q_a and kv_a by one matrix, unless an fp8 block would have rows of both."""
        parts = self.q_a_proj, self.kv_a_proj_with_mqa
        if self.config.fp8 and len(parts[0].weight) % FP8_BLOCK:
            return
        with torch.device("meta"):
            stacked = Linear(
                *(sum(len(part.weight) for part in parts), self.config.hidden),
                dtype=parts[0].dtype,
                quantised=self.config.fp8,
            )
        for name, _ in stacked.named_parameters():
            values = torch.cat([getattr(part, name) for part in parts])
            setattr(stacked, name, nn.Parameter(values, requires_grad=False))
        self.q_kv_a_proj = stacked
        del self.q_a_proj, self.kv_a_proj_with_mqa

    def forward(self, x_TD: Tensor, rotations: Tensor, batch: Batch, cache: PagedCache) -> Tensor:
        """Attention output [T, D]; writes the tokens' latents into `cache`. `rotations`:
        [T, R/2]."""
        if not len(x_TD):  # only other ranks have tokens in this step
            return x_TD
        config = self.config
        if self.q_kv_a_proj is not None:
            sizes = [config.q_lora, config.latent_dim]
            q_a, kv_a = self.q_kv_a_proj(x_TD).split(sizes, dim=-1)
        else:
            q_a = None if config.q_lora is None else self.q_a_proj(x_TD)
            kv_a = self.kv_a_proj_with_mqa(x_TD)
        q_a, latents = self.latents(q_a, kv_a, rotations, batch, cache)
        q = self.q_proj(x_TD) if q_a is None else self.q_b_proj(q_a)
        q = q.unflatten(-1, (self.heads, -1))
        values = []
        decoded = 0
        if batch.decodes:
            decoded = len(batch.decodes.lengths_N)
            blocks_BSL = cache.blocks(self.layer)
            values.append(
                self.absorbed(q[:decoded], rotations[:decoded], blocks_BSL, batch.decodes)
            )
        if batch.prefills:
            values.append(
                self.unabsorbed(
                    *(q[decoded:], rotations[decoded:], latents[decoded:]),
                    *(cache, batch.prefills),
                )
            )
        attended = torch.cat(values) if len(values) > 1 else values[0]
        return self.o_proj(attended.flatten(1), self.part_dtype)

    def latents(
        self,
        q_TQ: Tensor | None,
        x_TL: Tensor,
        rotations: Tensor,
        batch: Batch,
        cache: PagedCache,
    ) -> tuple[Tensor | None, Tensor]:
        """The tokens' latents: the queries', normalised, if there are any, and [T, L] the keys' and
        values', normalised, and keys, rotated. Writes the second into `cache`."""
        norm = self.kv_a_layernorm
        if kernels.used(x_TL):
            from ref_dsinfer.kernels import fused  # Triton is installed only where GPUs are used

            blocks_BSL = cache.blocks(self.layer)
            queries = None if q_TQ is None else (q_TQ, self.q_a_layernorm.weight)
            return fused.latents(
                *(x_TL, norm.weight, norm.eps, rotations, blocks_BSL, batch.slots_T, queries)
            )
        latents = plain_latents(x_TL, norm, rotations)
        cache.write(self.layer, batch.slots_T, latents)
        return None if q_TQ is None else self.q_a_layernorm(q_TQ), latents

    def unabsorbed(
        self,
        q_TH: Tensor,
        rotations: Tensor,
        latents: Tensor,
        cache: PagedCache,
        prefills: tuple[Prefill, ...],
    ) -> Tensor:
        """Causal attention of prefilled tokens to those before and themselves: [T, H, W].

        Queries are rotated where they are. Earlier tokens are read from the KV cache in chunks, so
        that memory does not grow with the context.
        """
        q_THR = q_TH[..., self.config.nope_dim :]
        rotate(q_THR, rotations, q_THR)
        counts = [prefill.count for prefill in prefills]
        keys, values = (part.split(counts) for part in self._keys_values(latents))
        attended = []
        for q, k, v, prefill in zip(q_TH.split(counts), keys, values, prefills, strict=True):
            part = self._attend(q, k, v, causal=True)
            for slots in (
                prefill.context.split(CONTEXT_CHUNK) if prefill.context is not None else ()
            ):
                k, v = self._keys_values(cache.read(self.layer, slots))
                part = merged(part, self._attend(q, k, v, causal=False))
            attended.append(part[0].to(q.dtype))
        return torch.cat(attended)[..., : self.config.v_dim]

    def _keys_values(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of all heads, projected up from latents: each [L, H, K + R].

        Fused kernels need values as wide as keys: values end in zeros.
        """
        config = self.config
        latent, k_rope = latents.split([config.kv_lora, config.rope_dim], dim=-1)
        unfolded = F.linear(latent, self.unfold).unflatten(-1, (self.heads, -1))
        k_nope, v = unfolded.split([config.nope_dim, config.v_dim], dim=-1)
        k = torch.cat([k_nope, k_rope[:, None].expand(-1, self.heads, -1)], dim=-1)
        return k, F.pad(v, (0, max(k.shape[-1] - config.v_dim, 0)))

    def _attend(
        self, q_TH: Tensor, k_LH: Tensor, v_LH: Tensor, causal: bool
    ) -> tuple[Tensor, Tensor]:
        """Attention of T tokens to L, or if `causal` to those of the same T up to themselves:
        values [T, H, W], and the log of each softmax's sum [T, H]."""
        q, k, v = (part.transpose(0, 1)[None] for part in (q_TH, k_LH, v_LH))
        values, sums = fused_attention(q, k, v, causal, self.config.softmax_scale)
        return values[0].transpose(0, 1), sums[0].transpose(0, 1)

    def absorbed(
        self, q_NH: Tensor, rotations: Tensor, blocks_BSL: Tensor, decodes: Decodes
    ) -> Tensor:
        """Attention of decoded tokens, whose queries are not rotated yet, to latents in blocks:
        [N, H, W].

        This is multi-query attention: all heads share one key head, whose values are the keys
        without their rotated part.
        """
        config = self.config
        q_NHK, q_NHR = q_NH.split([config.nope_dim, config.rope_dim], dim=-1)
        q_NHL = q_NH.new_empty(len(q_NH), self.heads, config.latent_dim)
        # Results go where the next step reads them, so that none is copied.
        q_NHC, rotated_NHR = q_NHL.split([config.kv_lora, config.rope_dim], dim=-1)
        torch.bmm(q_NHK.transpose(0, 1), self.w_HKC, out=q_NHC.transpose(0, 1))
        rotate(q_NHR, rotations, rotated_NHR)
        attended_NHC = attend(q_NHL, blocks_BSL, decodes, config.kv_lora, config.softmax_scale)
        attended_HNC = attended_NHC.to(q_NHL.dtype).transpose(0, 1)
        values_NHW = q_NHL.new_empty(len(q_NHL), self.heads, config.v_dim)
        torch.bmm(attended_HNC, self.w_HWC.transpose(1, 2), out=values_NHW.transpose(0, 1))
        return values_NHW


def fused_attention(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """`F.scaled_dot_product_attention` of [1, H, T, ...], with the log of each softmax's sum
    [1, H, T]; torch has this only as the operators behind it."""
    if q.device.type == "cpu":
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, causal, scale=scale
        )
    if q.dtype == torch.float32:  # which flash attention does not support
        outputs = torch.ops.aten._scaled_dot_product_efficient_attention(
            q, k, v, None, True, 0.0, causal, scale=scale
        )
    else:
        outputs = torch.ops.aten._scaled_dot_product_flash_attention(
            q, k, v, 0.0, causal, False, scale=scale
        )
    return outputs[0], outputs[1][..., : q.shape[2]]  # some pad the sums


def merged(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The attention to two sets of tokens, from the attention to each: fp32 values [T, H, W], and
    the logs of the softmax's sums [T, H]."""
    sums = torch.logaddexp(one[1], other[1])
    values = [part.float() * (log - sums).exp()[..., None] for part, log in (one, other)]
    return values[0] + values[1], sums


def plain_latents(x_TL: Tensor, norm: RMSNorm, rotations: Tensor) -> Tensor:
    """The definition of `Attention.latents`, without the cache."""
    latent, k_rope = x_TL.split([len(norm.weight), 2 * rotations.shape[-1]], dim=-1)
    return torch.cat([norm.plain(latent), plain_rotate(k_rope, rotations)], dim=-1)


def attend(q_NHL: Tensor, blocks_BSL: Tensor, decodes: Decodes, kept: int, scale: float) -> Tensor:
    """`plain` by its fastest implementation for such queries."""
    if decodes.planned:  # for values of this width, and by this scale
        return decodes.planned(q_NHL, blocks_BSL)
    tables_NM, lengths_N = decodes.tables_NM, decodes.lengths_N
    if kernels.used(q_NHL):
        from ref_dsinfer.kernels import mla  # Triton is installed only where GPUs are used

        return mla.attend(q_NHL, blocks_BSL, tables_NM, lengths_N, decodes.order_N, kept, scale)
    on_cpu = cpu_kernels.attend if cpu_kernels.library() else plain
    return on_cpu(q_NHL, blocks_BSL, tables_NM, lengths_N, kept, scale)


def plain(
    q_NHL: Tensor,
    blocks_BSL: Tensor,
    tables_NM: Tensor,
    lengths_N: Tensor,
    kept: int,
    scale: float,
) -> Tensor:
    """The definition of `cpu_kernels.attend`: torch's attention over a copy of the blocks."""
    keys = blocks_BSL[tables_NM].flatten(1, 2)[:, None]
    places = torch.arange(keys.shape[2], device=keys.device)
    mask = (places < lengths_N[:, None])[:, None, None]
    q = q_NHL[:, None].to(keys.dtype)
    attended = F.scaled_dot_product_attention(q, keys, keys, attn_mask=mask, scale=scale)
    return attended[:, 0, :, :kept]
