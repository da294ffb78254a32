"""From logits to the next token ids, the same on every rank."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ref_dsinfer.parallel import Ranks
from ref_dsinfer.sequence import Sequence


@dataclass(frozen=True)
class Scores:
    """What tokens are sampled from. M rows, of which a step of fixed shape does not use all."""

    part_MV: Tensor  # fp32, this rank's logits [M, V / world]
    greedy_M: Tensor  # int64, the id of each row's largest logit; the lowest one of equals
    rows: NDArray[np.int64]  # that are sampled, in order

    def greedy(self) -> list[int]:
        """The greedy choice of each row that is sampled."""
        ids: list[int] = self.greedy_M.cpu().numpy()[self.rows].tolist()
        return ids


def sample(scores: Scores, targets: list[tuple[Sequence, int]], ranks: Ranks) -> list[int]:
    """One id for each target: a sequence and an index into its answer.

    Greedy where the temperature is 0; targets may be left out where all are.
    """
    tokens = scores.greedy()
    drawn = [number for number, (sequence, _) in enumerate(targets) if sequence.temperature > 0]
    if drawn:
        logits_NV = ranks.gather_columns(scores.part_MV[torch.from_numpy(scores.rows[drawn])])
        ids = sample_top_p(logits_NV, [targets[n] for n in drawn]).tolist()
        # GPUs may sum in another order on each rank; one different id, and the ranks diverge.
        for number, token in zip(drawn, ranks.broadcast_ids(ids), strict=True):
            tokens[number] = token
    return tokens


def greedy(part_NV: Tensor, ranks: Ranks) -> Tensor:
    """The id of each row's largest logit, of all ranks' parts; the lowest id wins a tie. int64 [N].

    16 bytes a row and rank are exchanged instead of all logits.
    """
    best_N, ids_N = part_NV.max(dim=-1)  # the first of equals
    if ranks.world_size == 1:
        return ids_N
    ids_N = ids_N + ranks.rank * part_NV.shape[1]
    # float64 holds both exactly
    pairs = ranks.gather_columns(torch.stack([best_N.double(), ids_N.double()], dim=-1))
    values_NR, ids_NR = pairs.unflatten(1, (ranks.world_size, 2)).unbind(dim=-1)
    first_N = values_NR.argmax(dim=-1, keepdim=True)  # ranks have the ids in their order
    return ids_NR.gather(1, first_N).squeeze(1).long()


def sample_top_p(logits_NV: Tensor, targets: list[tuple[Sequence, int]]) -> Tensor:
    """Sample from the smallest set of ids whose probability reaches top_p, by inverting the
    cumulative sum."""

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=logits_NV.device)[:, None]

    temperatures = column([sequence.temperature for sequence, _ in targets])
    top_ps = column([sequence.top_p for sequence, _ in targets])
    numbers = column([sequence.random_number(index) for sequence, index in targets])
    probabilities = (logits_NV.double() / temperatures).softmax(dim=-1)
    ordered, ids = probabilities.sort(dim=-1, descending=True, stable=True)
    cumulative = ordered.cumsum(dim=-1)
    kept = (cumulative - ordered < top_ps).sum(dim=-1, keepdim=True).clamp(min=1)
    total = cumulative.gather(1, kept - 1)
    index = torch.searchsorted(cumulative, numbers * total, right=True)
    return ids.gather(1, index.minimum(kept - 1)).squeeze(1)
