"""Speculative decoding with the model's own MTP layer: it drafts tokens, which the model verifies.

A step of a running sequence runs its last token and the drafts behind it. After each of them a
token is sampled as if there were no drafts, and drafts are accepted as far as they equal what was
sampled: so an answer is token for token the one without drafts, greedy or not. Then the MTP layer
reads the same tokens (its latents lie in a further layer of the KV cache) and drafts again, each
draft from the one before. Latents of rejected drafts are overwritten before they are read.
"""

from dataclasses import replace
from itertools import accumulate

import torch
from torch import Tensor

from benchmark import MTP_STEPS
from ref_dsinfer.batch import Batch
from ref_dsinfer.decoding import Decoding
from ref_dsinfer.graphs import Drafter, GraphPool, Rows
from ref_dsinfer.runner import Runner, at_fixed_shape
from ref_dsinfer.sampler import Scores, greedy
from ref_dsinfer.scheduler import ScheduledTokens
from ref_dsinfer.sequence import Sequence


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
    _drafter: Drafter | None = None  # where the runner has a decoder
    _hidden_TD: Tensor  # of the last step, or the last pass of the MTP layer

    def fix_shapes(self, step_tokens: int, max_running: int, max_model_len: int) -> None:
        super().fix_shapes(step_tokens, max_running, max_model_len)
        assert self.decoder
        self._drafter = Drafter(self.decoder, self.padding_block)

    def capture_graphs(self, largest_only: bool = False) -> GraphPool:
        pool = super().capture_graphs(largest_only)
        assert self._drafter
        sizes = self._drafter.sizes
        return self._drafter.capture(sizes[-1:] if largest_only else sizes, pool)

    def close(self) -> None:
        super().close()
        if self._drafter:
            self._drafter.close()
        self._drafter = None

    def run(self, scheduled: list[ScheduledTokens], decoding: Decoding | None = None) -> Scores:
        if self.decoder:
            self._hidden_TD = self.decoder.hidden
        return super().run(scheduled, decoding)

    def forward(self, batch: Batch) -> Tensor:
        self._hidden_TD = super().forward(batch)
        return self._hidden_TD

    def _warm_up_step(self, tokens: int, decodes: int) -> tuple[Batch, Tensor]:
        batch, hidden_TD = super()._warm_up_step(tokens, decodes)
        self.model.draft(batch, hidden_TD, self.cache)
        return batch, hidden_TD

    @torch.inference_mode()
    def draft(self, scheduled: list[ScheduledTokens]) -> None:
        """Draft tokens for the sequences that have just run, as many as their limits allow.

        The first pass reads all tokens that they have run, each further one the last draft.
        """
        firsts = accumulate((item.count for item in scheduled), initial=0)
        ran = [
            pair for pair in zip(scheduled, firsts, strict=False) if pair[0].sequence.block_table
        ]
        if not ran:
            return  # all of them have finished
        items = [item for item, _ in ran]
        sources = [source for _, source in ran]
        sequences, rows, first = [], [], 0  # where each sequence's newest draft comes from
        for item in items:
            # an answer's last token is sampled by the model: no draft can save a step there
            if item.samples and _room(item.sequence) > 1:
                sequences.append(item.sequence)
                rows.append(first + item.sequence.length - 2 - item.start)  # before its last token
            first += item.count
        for step in range(1, self.drafts + 1):
            drafts = self._pass(items, sources, rows)
            for sequence, token in zip(sequences, drafts, strict=True):
                sequence.drafts.append(token)
            open_ = [n for n, sequence in enumerate(sequences) if _room(sequence) > step + 1]
            if not open_:
                break
            sequences, sources = [sequences[n] for n in open_], [rows[n] for n in open_]
            items = [
                ScheduledTokens(sequence, sequence.length - 2 + step, 1, samples=1)
                for sequence in sequences
            ]
            rows = list(range(len(items)))

    def _pass(self, items: list[ScheduledTokens], sources: list[int], rows: list[int]) -> list[int]:
        """Run the MTP layer once: on each token with the one behind it, and its hidden state.

        `sources`: the row of the last hidden states in which each item's first token is. Returns
        what is drafted in some `rows` of this pass.
        """
        tokens = [_next_tokens(item) for item in items]
        picks = [
            source + offset
            for item, source in zip(items, sources, strict=True)
            for offset in range(item.count)
        ]
        if self._drafter and at_fixed_shape(items):
            if self._hidden_TD is not self._drafter.hidden:  # of a step of another shape
                picked = self._hidden_TD[self._ids(picks)]
                self._hidden_TD = self._drafter.hidden
                self._hidden_TD[: len(picked)] = picked
                picks = list(range(len(picked)))
            step = Rows(self.cache.block_size)
            for item, nexts in zip(items, tokens, strict=True):
                step.add(item, nexts, source=picks[len(step)])
            return self._drafter.run(step, rows, [len(step)], [len(rows)]).greedy()
        batch = replace(
            self.batch(items, [len(picks)]),
            tokens_T=self._ids([token for nexts in tokens for token in nexts]),
        )
        self._hidden_TD = self.model.draft(batch, self._hidden_TD[self._ids(picks)], self.cache)
        if not rows:
            return []
        logits = self.model.logits(self._hidden_TD[self._ids(rows)])
        return greedy(logits, self.ranks).tolist()


def _room(sequence: Sequence) -> int:
    """Tokens that the answer may still get."""
    return sequence.limit - sequence.length


def _next_tokens(item: ScheduledTokens) -> list[int]:
    """The token behind each of the item's; 0 behind a rejected draft, where nothing is read."""
    tokens = item.sequence.ids(item.start + 1, item.stop + 1)
    return [*tokens, *[0] * (item.count - len(tokens))]
