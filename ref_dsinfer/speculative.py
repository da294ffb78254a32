"""Speculative decoding with the model's own MTP layer: it drafts tokens, which the model verifies.

A step of a running sequence runs its last token and the drafts behind it. After each of them a
token is sampled as if there were no drafts, and drafts are accepted as far as they equal what was
sampled: so an answer is token for token the one without drafts, greedy or not. Then the MTP layer
reads the same tokens (its latents lie in a further layer of the KV cache) and drafts again, each
draft from the one before. Latents of rejected drafts are overwritten before they are read.
"""

from dataclasses import replace

import torch
from torch import Tensor

from benchmark import MTP_STEPS
from ref_dsinfer.batch import Batch
from ref_dsinfer.runner import Runner
from ref_dsinfer.sampler import greedy
from ref_dsinfer.scheduler import ScheduledTokens


def accepted(drafts: list[int], sampled: list[int]) -> list[int]:
    """The drafts that equal the sampled tokens, up to the first that does not, and the token that
    was sampled after them.

    `sampled` has one token more than `drafts`.
    """
    count = 0
    while count < len(drafts) and drafts[count] == sampled[count]:
        count += 1
    return sampled[: count + 1]


class SpeculativeRunner(Runner):
    """A runner that also drafts."""

    drafts = MTP_STEPS

    @torch.inference_mode()
    def run(self, scheduled: list[ScheduledTokens]) -> Tensor:
        """Logits [N, V / world] for each token to sample, those after drafts among them."""
        self._batch = self.batch(scheduled, [sum(item.count for item in scheduled)])
        self._hidden_TD = self.model(self._batch, self.cache)
        hidden_ND = self.sampled_rows(scheduled, self._hidden_TD)
        return self.logits(hidden_ND, [len(hidden_ND)])

    def _warm_up_step(self, tokens: int, decodes: int) -> tuple[Batch, Tensor]:
        batch, hidden_TD = super()._warm_up_step(tokens, decodes)
        self.model.draft(batch, hidden_TD, self.cache)
        return batch, hidden_TD

    @torch.inference_mode()
    def draft(self, scheduled: list[ScheduledTokens]) -> None:
        """Draft tokens for the sequences that have just run, as many as their limits allow."""
        batch = replace(self._batch, tokens_T=self._next_tokens(scheduled))
        hidden_TD = self.model.draft(batch, self._hidden_TD, self.cache)
        sequences, rows, first = [], [], 0
        for item in scheduled:
            sequence = item.sequence
            if item.samples and sequence.block_table:  # past its prompt, and not finished
                sequences.append(sequence)
                rows.append(first + sequence.length - 2 - item.start)  # before its last token
            first += item.count
        for step in range(self.drafts):
            # an answer's last token is sampled by the model: no draft can save a step there
            open_ = [n for n, one in enumerate(sequences) if one.limit - one.length > step + 1]
            if not open_:
                break
            sequences = [sequences[n] for n in open_]
            hidden_TD = hidden_TD[self._ids([rows[n] for n in open_])]
            rows = list(range(len(open_)))
            if step:
                last_tokens = [
                    ScheduledTokens(sequence, sequence.length - 2 + step, 1, samples=1)
                    for sequence in sequences
                ]
                batch = replace(
                    self.batch(last_tokens, [len(last_tokens)]),
                    tokens_T=self._next_tokens(last_tokens),
                )
                hidden_TD = self.model.draft(batch, hidden_TD, self.cache)
            tokens = greedy(self.model.logits(hidden_TD), self.ranks)
            for sequence, token in zip(sequences, tokens, strict=True):
                sequence.drafts.append(token)

    def _next_tokens(self, scheduled: list[ScheduledTokens]) -> Tensor:
        """For each token the one behind it; 0 behind a rejected draft, where nothing is read."""
        tokens: list[int] = []
        for item in scheduled:
            ids = item.sequence.ids(item.start + 1, item.stop + 1)
            tokens += [*ids, *[0] * (item.count - len(ids))]
        return self._ids(tokens)
