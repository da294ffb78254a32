"""From logits to the next token ids, the same on every rank."""

import torch
from torch import Tensor

from ref_dsinfer.parallel import Ranks
from ref_dsinfer.sequence import Sequence


def sample(logits_NV: Tensor, targets: list[tuple[Sequence, int]], ranks: Ranks) -> list[int]:
    """One id for each target: a sequence and an index into its answer.

    Greedy where the temperature is 0: the lowest id wins a tie.
    """
    tokens = logits_NV.argmax(dim=-1).tolist()  # argmax returns the first of equals
    random_rows = [row for row, (sequence, _) in enumerate(targets) if sequence.temperature > 0]
    if random_rows:
        ids = sample_top_p(logits_NV[random_rows], [targets[row] for row in random_rows]).tolist()
        # GPUs may sum in another order on each rank; one different id, and the ranks diverge.
        for row, token in zip(random_rows, ranks.broadcast_ids(ids), strict=True):
            tokens[row] = token
    return tokens


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
