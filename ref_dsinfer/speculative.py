"""Speculative decoding with the model's own MTP layer: a few drafts a step, which the model checks.

In a step of a running answer the model runs its last token and the drafts behind it. After each of
them a token is drawn as if no draft were there, and drafts hold as far as they are what was drawn:
so the answer is token for token the one without drafts, greedy or not. Then the MTP layer reads
what the model has read (its latents lie in a further layer of the cache) and drafts anew, each
draft from the one before. What it wrote of wrong drafts is overwritten before it is read.
"""

from dataclasses import replace

import torch
from torch import Tensor

from benchmark import MTP_STEPS
from ref_dsinfer.runner import Runner
from ref_dsinfer.scheduler import Work


def checked(drafts: list[int], drawn: list[int]) -> list[int]:
    """The tokens drawn after right drafts, and the one more that was drawn after the last of them.

    `drawn` are one more than the `drafts`.
    """
    right = 0
    while right < len(drafts) and drafts[right] == drawn[right]:
        right += 1
    return drawn[: right + 1]


class SpeculativeRunner(Runner):
    """A runner that also drafts."""

    drafts = MTP_STEPS

    @torch.inference_mode()
    def run(self, work: list[Work]) -> Tensor:
        """Logits [N, V] for each token to be drawn, those after drafts among them."""
        self._batch = self.batch(work, sum(one.count for one in work))
        self._hidden_TD = self.model(self._batch, self.cache)
        drawn_ND = self.drawn(work, self._hidden_TD)
        return self.logits(drawn_ND, [len(drawn_ND)])

    @torch.inference_mode()
    def draft(self, work: list[Work]) -> None:
        """Give drafts to the sequences of the work just run, as many as their answers have room."""
        batch = replace(self._batch, tokens_T=self._following(work))
        hidden_TD = self.model.draft(batch, self._hidden_TD, self.cache)
        sequences, rows, first = [], [], 0
        for one in work:
            sequence = one.sequence
            if one.draws and sequence.blocks:  # neither within its prompt nor at its end
                sequences.append(sequence)
                rows.append(first + sequence.length - 2 - one.start)  # before its last token
            first += one.count
        for step in range(self.drafts):
            # the last token of an answer is the model's to give
            open_ = [n for n, one in enumerate(sequences) if one.limit - one.length > step + 1]
            if not open_:
                break
            sequences = [sequences[n] for n in open_]
            hidden_TD = hidden_TD[self._ids([rows[n] for n in open_])]
            rows = list(range(len(open_)))
            if step:
                one_each = [Work(one, one.length - 2 + step, 1, draws=1) for one in sequences]
                batch = replace(
                    self.batch(one_each, len(one_each)), tokens_T=self._following(one_each)
                )
                hidden_TD = self.model.draft(batch, hidden_TD, self.cache)
            tokens = self.model.logits(hidden_TD).argmax(dim=-1).tolist()
            for sequence, token in zip(sequences, tokens, strict=True):
                sequence.drafts.append(token)

    def _following(self, work: list[Work]) -> Tensor:
        """Of each token the next one; 0 behind a wrong draft, where nothing is read any more."""
        tokens: list[int] = []
        for one in work:
            ids = one.sequence.ids(one.start + 1, one.stop + 1)
            tokens += [*ids, *[0] * (one.count - len(ids))]
        return self._ids(tokens)
