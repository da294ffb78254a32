"""DeepSeek-V3, and how its weights are loaded.

Shape letters: T tokens of this rank, G of all ranks, N sequences, D hidden, V vocabulary.

Modules carry Hugging Face's names, so that a checkpoint's tensor is found by its name; only what
is one product here and several tensors there is mapped in `_checkpoint_names`.
"""

from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from errors import CheckpointError
from ref_dsinfer import checkpoint, rope
from ref_dsinfer.attention import Attention
from ref_dsinfer.batch import Batch
from ref_dsinfer.cache import PagedCache
from ref_dsinfer.config import ModelConfig
from ref_dsinfer.gemm import Arithmetic
from ref_dsinfer.layers import MLP, Embedding, Head, Linear, RMSNorm, Weight, narrow
from ref_dsinfer.moe import Gate, MoE
from ref_dsinfer.parallel import Ranks


class Layer(nn.Module):
    """Attention and MLP, each added to the residual stream after one reduction.

    Sums over ranks stay fp32 until then. What the MLP returns is added by the norm that follows.
    """

    def __init__(self, config: ModelConfig, layer: int, dtype: torch.dtype, ranks: Ranks) -> None:
        super().__init__()
        self.ranks = ranks
        self.input_layernorm = RMSNorm(config.hidden, config.eps)
        self.self_attn = Attention(config, layer, dtype, ranks)
        self.post_attention_layernorm = RMSNorm(config.hidden, config.eps)
        self.mlp = (
            MLP(config, config.dense_intermediate, dtype, ranks)
            if layer < config.dense_layers
            else MoE(config, dtype, ranks)
        )

    def forward(
        self,
        x_TD: Tensor,
        part_TD: Tensor | None,
        rotations: Tensor,
        batch: Batch,
        cache: PagedCache,
    ) -> tuple[Tensor, Tensor]:
        """Hidden states [T, D] are x, and, where it is given, a part that was not added to it yet.
        Returns the next layer's, in two parts too, of which the second is fp32."""
        x_TD, normed_TD = self.input_layernorm.added(x_TD, part_TD)
        attended = self.self_attn(normed_TD, rotations, batch, cache)
        attended = self.ranks.reduce_heads(attended, attended.dtype)
        x_TD, normed_TD = self.post_attention_layernorm.added(x_TD, attended)
        part_GD = self.mlp(self.ranks.gather_tokens(normed_TD, batch.width), batch.real_G)
        return x_TD, self.ranks.scatter_tokens(part_GD, len(x_TD), torch.float32)


class MTP(Layer):
    """Multi-token prediction: drafts the token after the next (arXiv 2412.19437, section 2.2).

    Entry i joins the hidden state after token i with the embedding of token i + 1, and leads to
    token i + 2. Embedding and head are the model's own.
    """

    def __init__(self, config: ModelConfig, dtype: torch.dtype, ranks: Ranks) -> None:
        super().__init__(config, config.layers, dtype, ranks)
        self.enorm = RMSNorm(config.hidden, config.eps)
        self.hnorm = RMSNorm(config.hidden, config.eps)
        self.eh_proj = Linear(config.hidden, 2 * config.hidden, dtype=dtype)  # never fp8
        self.shared_head = nn.ModuleDict({"norm": RMSNorm(config.hidden, config.eps)})

    def entries(self, embedded_TD: Tensor, hidden_TD: Tensor) -> Tensor:
        """The layer's inputs [T, D]."""
        return self.eh_proj(torch.cat([self.enorm(embedded_TD), self.hnorm(hidden_TD)], dim=-1))


class Model(nn.Module):
    """From token ids to hidden states, and from these to this rank's part of the logits."""

    rotations: Tensor  # of every position, complex64 [position, rope_dim / 2]

    def __init__(self, config: ModelConfig, dtype: torch.dtype, ranks: Ranks) -> None:
        super().__init__()
        self.config, self.ranks = config, ranks
        self.embed_tokens = Embedding(config, dtype, ranks)
        self.layers = nn.ModuleList(Layer(config, i, dtype, ranks) for i in range(config.layers))
        self.norm = RMSNorm(config.hidden, config.eps)
        self.lm_head = Head(config, ranks)
        self.mtp = MTP(config, dtype, ranks) if config.mtp else None

    def forward(self, batch: Batch, cache: PagedCache) -> Tensor:
        """Hidden states [T, D] after the last norm; writes the tokens' latents into `cache`."""
        x_TD = self.embed_tokens(batch.tokens_T, batch.width)
        rotations = self.rotations[batch.positions_T]
        part_TD = None
        for layer in self.layers:
            x_TD, part_TD = layer(x_TD, part_TD, rotations, batch, cache)
        return self.norm.added(x_TD, part_TD)[1]

    def draft(self, batch: Batch, hidden_TD: Tensor, cache: PagedCache) -> Tensor:
        """The MTP layer's hidden states [T, D], from which `logits` makes drafts.

        `hidden_TD` are those of the batch's tokens, from `forward` or from here; `batch.tokens_T`
        holds in each token's place the one that follows it.
        """
        assert self.mtp
        embedded_TD = self.embed_tokens(batch.tokens_T, batch.width)
        embedded_TD = embedded_TD.masked_fill(batch.positions_T[:, None] == 0, 0)  # DeepSeek's rule
        x_TD = self.mtp.entries(embedded_TD, hidden_TD)
        x_TD, part_TD = self.mtp(x_TD, None, self.rotations[batch.positions_T], batch, cache)
        norm = cast(RMSNorm, self.mtp.shared_head["norm"])
        return norm.added(x_TD, part_TD)[1]

    def logits(self, x_ND: Tensor) -> Tensor:
        """fp32 logits of hidden states for this rank's part of the vocabulary, [N, V / world]."""
        return self.lm_head(x_ND)

    @classmethod
    def load(
        cls, model_dir: Path, config: ModelConfig, dtype: torch.dtype, ranks: Ranks, length: int
    ) -> "Model":
        """Load this rank's part of a checkpoint, for positions below `length`.

        Tensors are copied one at a time into the model's memory, and converted to `dtype` there.
        Raises: CheckpointError if a tensor is missing, unknown, or of another shape or type.
        """
        with ranks.device:
            model = cls(config, dtype, ranks)  # its memory, not yet filled
        parameters = model._checkpoint_names()
        for name, tensor in checkpoint.read(
            checkpoint.rank_pieces(
                model_dir, config, ranks.rank, ranks.world_size, ranks.attn_tp_size
            )
        ):
            parameter = parameters.pop(name, None)
            if parameter is None:
                raise CheckpointError(f"{model_dir} holds {name}, which is no tensor of this model")
            if parameter.shape != tensor.shape:
                raise CheckpointError(
                    f"{model_dir}: {name} has shape {list(tensor.shape)}, but by config.json it is"
                    f" {list(parameter.shape)}"
                )
            if (parameter.dtype == torch.float8_e4m3fn) != (tensor.dtype == torch.float8_e4m3fn):
                raise CheckpointError(
                    f"{model_dir}: {name} is {tensor.dtype}, which config.json's"
                    " quantization_config contradicts"
                )
            parameter.copy_(tensor)
        if parameters:
            raise CheckpointError(
                f"{model_dir} lacks {len(parameters)} tensors, the first of them {min(parameters)}"
            )
        model.rotations = rope.table(config, length).to(ranks.device)
        for module in model.modules():
            if isinstance(module, Attention):
                module.prepare()
            elif isinstance(module, Gate | Head) and ranks.device.type == "cuda":
                narrow(module.weight)
        return model

    def multiply_in(self, arithmetic: Arithmetic) -> None:
        """Choose the arithmetic of products with block-fp8 weights."""
        for module in self.modules():
            if isinstance(module, Weight):
                module.arithmetic = arithmetic

    def _checkpoint_names(self) -> dict[str, Tensor]:
        """The parameter, or part of one, of each tensor of a checkpoint, by Hugging Face's name."""
        parameters: dict[str, Tensor] = {}
        for name, parameter in self.named_parameters():
            full = name if name.startswith("lm_head") else f"model.{name}"
            full = full.replace("model.mtp.", f"model.layers.{self.config.layers}.")
            if ".experts." in name:
                for number, matrix in enumerate(parameter, self.ranks.rank * len(parameter)):
                    expert = full.replace(".experts.", f".experts.{number}.")
                    parameters.update(_unfused(expert, matrix))
            else:
                parameters.update(_unfused(full, parameter))
        return parameters


def _unfused(name: str, parameter: Tensor) -> dict[str, Tensor]:
    """Split a fused gate and up back into the checkpoint's two."""
    if ".gate_up_proj." not in name:
        return {name: parameter}
    gate, up = parameter
    return {
        name.replace("gate_up_proj", "gate_proj"): gate,
        name.replace("gate_up_proj", "up_proj"): up,
    }
