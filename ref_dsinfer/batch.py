"""What one step feeds the model. Tokens of all sequences lie one after another; none is padding.

Shape letters: T tokens, N decoded sequences, B blocks, S places of a block.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Decodes:
    """The cache as N decoded tokens see it, one a sequence."""

    count: int  # N
    blocks: slice | Tensor  # B blocks of the cache, theirs among them
    owner_B: Tensor  # int64, the sequence whose block it is; N where it is none of theirs
    mask_BS: Tensor  # 0 where the owner has a token, −inf elsewhere; model's dtype


@dataclass(frozen=True)
class Prefill:
    """A run of one sequence's tokens, from a prompt or from an answer that is read again."""

    count: int  # tokens
    rows: Tensor | None  # int64, of all tokens before and of its own; None where none are before


@dataclass(frozen=True)
class Batch:
    """Tokens to run and where they belong: first the decoded ones, then the prefills' in order."""

    tokens_T: Tensor  # int64
    positions_T: Tensor  # int64
    rows_T: Tensor  # int64, where the cache keeps each token
    decodes: Decodes | None
    prefills: tuple[Prefill, ...]
