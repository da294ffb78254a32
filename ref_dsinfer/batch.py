"""What one step feeds this rank's model. Tokens of all sequences lie one after another; none is
padding.

Shape letters: T tokens, N decoded sequences, M blocks of the longest of them.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Decodes:
    """What N decoded tokens, one a sequence, see of the cache."""

    table_NM: Tensor  # int64, each sequence's blocks in order; 0 beyond its last
    lengths_N: Tensor  # int64, tokens in the cache, the decoded one among them


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
    width: int  # tokens of the rank that has most
