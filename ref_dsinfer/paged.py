"""Attention of decoded tokens over latents in blocks: in each block by itself, then summed.

Seen from the cache this is one key head that all queries share, whose values are the keys without
their rotated part.

Shape letters: N sequences, H this rank's heads, B blocks, S places of a block, L a latent and its
rotated key.
"""

import torch
from torch import Tensor

from ref_dsinfer.batch import Decodes


def attend(q_NHL: Tensor, blocks_BSL: Tensor, decodes: Decodes, scale: float) -> Tensor:
    """Softmax(scale · q · keys) · keys over each sequence's blocks; fp32 [N, H, L]."""
    q_NHL = torch.cat([q_NHL, q_NHL.new_zeros(1, *q_NHL.shape[1:])])  # of blocks of none of them
    q_BHL = q_NHL[decodes.owner_B]
    within = fused if q_NHL.is_cpu else plain
    return combine(*within(q_BHL, blocks_BSL, decodes.mask_BS, scale), decodes)


def fused(
    q_BHL: Tensor, blocks_BSL: Tensor, mask_BS: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """`plain` by the flash kernel of CPUs, which torch's public function keeps the second part of
    to itself."""
    keys = blocks_BSL[:, None]
    attended, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q_BHL[:, None], keys, keys, attn_mask=mask_BS[:, None, None], scale=scale
    )
    return attended[:, 0].float(), log_sum[:, 0]


def plain(
    q_BHL: Tensor, blocks_BSL: Tensor, mask_BS: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention within each block, fp32 [B, H, L], and the logarithm of its weights' sum [B, H]."""
    keys = blocks_BSL.float()
    scores_BHS = q_BHL.float() @ keys.transpose(1, 2) * scale + mask_BS[:, None]
    return scores_BHS.softmax(dim=-1) @ keys, scores_BHS.logsumexp(dim=-1)


def combine(attended_BHL: Tensor, log_sum_BH: Tensor, decodes: Decodes) -> Tensor:
    """Blocks' attention weighted by their sums, fp32 [N, H, L]."""
    owner_B, count = decodes.owner_B, decodes.count + 1
    heads, width = attended_BHL.shape[1:]
    owner_BH = owner_B[:, None].expand(-1, heads)
    largest_NH = log_sum_BH.new_full((count, heads), -torch.inf)
    largest_NH.scatter_reduce_(0, owner_BH, log_sum_BH, "amax")
    weight_BH = (log_sum_BH - largest_NH[owner_B]).exp()
    sum_NH = log_sum_BH.new_zeros(count, heads).index_add_(0, owner_B, weight_BH)
    sum_NHL = attended_BHL.new_zeros(count, heads, width)
    sum_NHL.index_add_(0, owner_B, attended_BHL * weight_BH[..., None])
    return sum_NHL[:-1] / sum_NH[:-1, :, None]
