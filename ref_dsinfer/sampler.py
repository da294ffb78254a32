"""From logits to the next token ids, the same on every rank."""

import torch
from torch import Tensor

from ref_dsinfer.parallel import Ranks
from ref_dsinfer.sequence import Sequence


def sample(logits_NV: Tensor, places: list[tuple[Sequence, int]], ranks: Ranks) -> list[int]:
    """One id for each place of a sequence's answer. Greedy where the temperature is 0: the lowest
    id wins a tie."""
    tokens = logits_NV.argmax(dim=-1).tolist()  # argmax returns the first of equals
    drawn = [row for row, (sequence, _) in enumerate(places) if sequence.temperature > 0]
    if drawn:
        ids = draw(logits_NV[drawn], [places[row] for row in drawn]).tolist()
        # GPUs may sum in another order on each rank, and one id apart all later steps differ.
        for row, token in zip(drawn, ranks.agree(ids), strict=True):
            tokens[row] = token
    return tokens


def draw(logits_NV: Tensor, places: list[tuple[Sequence, int]]) -> Tensor:
    """Draw from the smallest set of ids whose probability reaches top_p, by inverting the sum."""

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=logits_NV.device)[:, None]

    temperatures = column([sequence.temperature for sequence, _ in places])
    top_ps = column([sequence.top_p for sequence, _ in places])
    numbers = column([sequence.number(place) for sequence, place in places])
    probabilities = (logits_NV.double() / temperatures).softmax(dim=-1)
    ordered, ids = probabilities.sort(dim=-1, descending=True, stable=True)
    reached = ordered.cumsum(dim=-1)
    kept = (reached - ordered < top_ps).sum(dim=-1, keepdim=True).clamp(min=1)
    total = reached.gather(1, kept - 1)
    place = torch.searchsorted(reached, numbers * total, right=True)
    return ids.gather(1, place.minimum(kept - 1)).squeeze(1)
