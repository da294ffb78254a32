"""From logits to the next token ids, the same on every rank."""

import torch
from torch import Tensor

from ref_dsinfer.parallel import Ranks
from ref_dsinfer.sequence import Sequence


def sample(part_NV: Tensor, targets: list[tuple[Sequence, int]], ranks: Ranks) -> list[int]:
    """One id for each target: a sequence and an index into its answer.

    `part_NV`: each rank's logits of its part of the vocabulary. Greedy where the temperature is 0.
    """
    random_rows = [row for row, (sequence, _) in enumerate(targets) if sequence.temperature > 0]
    tokens = greedy(part_NV, ranks) if len(random_rows) < len(targets) else [0] * len(targets)
    if random_rows:
        logits_NV = ranks.gather_columns(part_NV[random_rows])
        ids = sample_top_p(logits_NV, [targets[row] for row in random_rows]).tolist()
        # GPUs may sum in another order on each rank; one different id, and the ranks diverge.
        for row, token in zip(random_rows, ranks.broadcast_ids(ids), strict=True):
            tokens[row] = token
    return tokens


def greedy(part_NV: Tensor, ranks: Ranks) -> list[int]:
    """The id of each row's largest logit; the lowest id wins a tie.

    16 bytes a row and rank are exchanged instead of all logits.
    """
    best_N, ids_N = part_NV.max(dim=-1)  # the first of equals
    if ranks.world_size == 1:
        return ids_N.tolist()
    ids_N = ids_N + ranks.rank * part_NV.shape[1]
    # float64 holds both exactly
    pairs = ranks.gather_columns(torch.stack([best_N.double(), ids_N.double()], dim=-1))
    values_NR, ids_NR = pairs.unflatten(1, (ranks.world_size, 2)).unbind(dim=-1)
    first_N = values_NR.argmax(dim=-1, keepdim=True)  # ranks have the ids in their order
    return ids_NR.gather(1, first_N).squeeze(1).long().tolist()


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
