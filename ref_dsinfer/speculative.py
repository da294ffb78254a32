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
from ref_dsinfer.graphs import Drafter, Row, decode_rows
from ref_dsinfer.runner import Runner
from ref_dsinfer.sampler import Scores, greedy
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
    _drafter: Drafter | None = None  # where the runner has a decoder
    _hidden_TD: Tensor  # of the last step, or the last pass of the MTP layer
    _scores: Scores | None = None  # of that pass, if it was one of fixed shape

    def fix_shapes(self, max_running: int, max_model_len: int) -> None:
        super().fix_shapes(max_running, max_model_len)
        assert self.decoder
        self._drafter = Drafter(self.decoder, self.padding_block, max_model_len)

    def capture_graphs(self) -> None:
        super().capture_graphs()
        assert self._drafter
        self._drafter.capture()

    def close(self) -> None:
        super().close()
        if self._drafter:
            self._drafter.close()

    def run(self, scheduled: list[ScheduledTokens]) -> Scores:
        if self.decoder:
            self._hidden_TD = self.decoder.hidden
        return super().run(scheduled)

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
        self._pass(*map(list, zip(*ran, strict=True)))
        sequences, rows, first = [], [], 0  # where each sequence's newest draft comes from
        for item, _ in ran:
            if item.samples:  # past its prompt
                sequences.append(item.sequence)
                rows.append(first + item.sequence.length - 2 - item.start)  # before its last token
            first += item.count
        for step in range(self.drafts):
            # an answer's last token is sampled by the model: no draft can save a step there
            open_ = [n for n, one in enumerate(sequences) if one.limit - one.length > step + 1]
            if not open_:
                break
            sequences, rows = [sequences[n] for n in open_], [rows[n] for n in open_]
            if step:
                last = [
                    ScheduledTokens(sequence, sequence.length - 2 + step, 1, samples=1)
                    for sequence in sequences
                ]
                self._pass(last, rows)
                rows = list(range(len(last)))
            for sequence, token in zip(sequences, self._drafted(rows), strict=True):
                sequence.drafts.append(token)

    def _pass(self, items: list[ScheduledTokens], sources: list[int]) -> None:
        """Run the MTP layer once: on each token with the one behind it, and its hidden state.

        `sources`: the row of the last hidden states in which each item's first token is.
        """
        tokens = [_next_tokens(item) for item in items]
        if self._drafter and all(item.is_decode for item in items):
            if self._hidden_TD is not self._drafter.hidden:  # of a step of another shape
                picked = self._hidden_TD[self._ids(sources)]
                self._hidden_TD = self._drafter.hidden
                self._hidden_TD[: len(picked)] = picked
                sources = list(range(len(picked)))
            rows: list[Row] = []
            tables: list[list[int]] = []
            for item, nexts, source in zip(items, tokens, sources, strict=True):
                rows += decode_rows(item, nexts, self.cache.block_size, source)
                tables += [item.sequence.block_table] * item.count
            self._scores = self._drafter.run(rows, tables, [len(rows)])
            return
        batch = replace(
            self.batch(items, [sum(item.count for item in items)]),
            tokens_T=self._ids([token for nexts in tokens for token in nexts]),
        )
        picks = [
            source + offset
            for item, source in zip(items, sources, strict=True)
            for offset in range(item.count)
        ]
        self._hidden_TD = self.model.draft(batch, self._hidden_TD[self._ids(picks)], self.cache)
        self._scores = None

    def _drafted(self, rows: list[int]) -> list[int]:
        """The tokens drafted in some rows of the last pass."""
        if self._scores:
            tokens = self._scores.greedy()
            return [tokens[row] for row in rows]
        logits = self.model.logits(self._hidden_TD[self._ids(rows)])
        return greedy(logits, self.ranks).tolist()


def _next_tokens(item: ScheduledTokens) -> list[int]:
    """The token behind each of the item's; 0 behind a rejected draft, where nothing is read."""
    tokens = item.sequence.ids(item.start + 1, item.stop + 1)
    return [*tokens, *[0] * (item.count - len(tokens))]
