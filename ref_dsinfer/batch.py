"""What one step feeds the model. Tokens of all sequences lie one after another; none is padding."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Tokens to run and where they belong; T tokens of N sequences."""

    tokens_T: Tensor  # int64
    positions_T: Tensor  # int64
    rows_T: Tensor  # int64, where the cache keeps each token


@dataclass(frozen=True)
class Prefill(Batch):
    """Whole prompts, from position 0 on."""

    lengths: tuple[int, ...]  # tokens of each sequence


@dataclass(frozen=True)
class Decode(Batch):
    """One token of every running sequence, in the order of their slots (T = N)."""

    mask_NL: Tensor  # 0 where a sequence has a token at that position, −inf beyond; model's dtype
