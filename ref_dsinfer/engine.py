"""The engine: requests come and go at any step, and no answer waits for another to end.

Synchronous, and token ids only. Under torchrun every rank has one, gets the same calls in the same
order, and returns the same outputs.
"""

import logging
import math
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch

from benchmark import MTP_STEPS
from errors import LengthError, ModelError, UsageError
from ref_dsinfer import checkpoint, cpu, parallel
from ref_dsinfer.blocks import BlockPool
from ref_dsinfer.cache import BLOCK_SIZE, block_count
from ref_dsinfer.config import ModelConfig
from ref_dsinfer.gemm import ARITHMETICS, Arithmetic
from ref_dsinfer.model import Model
from ref_dsinfer.parallel import Place
from ref_dsinfer.runner import Runner
from ref_dsinfer.sampler import sample
from ref_dsinfer.scheduler import STEP_TOKENS, Scheduler, share_of
from ref_dsinfer.sequence import Finish, Output, Sequence
from ref_dsinfer.speculative import SpeculativeRunner, checked

log = logging.getLogger(__name__)


class Engine:
    """A model, ready to answer."""

    def __init__(
        self,
        model_dir: Path | str,
        *,
        device: str = "auto",
        dtype: str = "auto",
        attention: str = "tp",
        max_model_len: int | None = None,
        max_running: int = 64,
        seed: int = 0,
        threads: int | None = None,
        block_size: int = BLOCK_SIZE,
        cache_tokens: int | None = None,
        step_tokens: int = STEP_TOKENS,
        gemm: Arithmetic = "bf16",
        graphs: bool = True,
        speculative: bool = False,
    ) -> None:
        """Load this rank's part of the model; all ranks come here together.

        `attention` says how ranks share it: tp, each has some heads, or dp, some sequences.
        `max_model_len` is in tokens of prompt and answer (None: the model's own), `max_running` in
        sequences, `threads` per process (None: this process's share of the cores). The cache has
        blocks of `block_size` tokens, `cache_tokens` in all of what ranks hold apart (None: what
        fits the free memory); a step runs `step_tokens` at most. `gemm` is the arithmetic of
        block-fp8 weights (gemm.py); with `graphs` a GPU decodes in CUDA graphs. `speculative`:
        draft with the model's MTP layer.
        Errors: UsageError, ModelError, ParallelError, CheckpointError. What every rank can find
        out from options and files is found before they meet, so that none waits for another.
        """
        model_dir = Path(model_dir)
        place = Place.from_environment()
        where = parallel.choose_device(device, place)
        if dtype not in cpu.DTYPES:
            known = ", ".join(cpu.DTYPES)
            raise UsageError(f"dtype {dtype!r} is unknown; {known} are known")
        if max_running < 1:
            raise UsageError(f"max_running is {max_running}; it must be 1 or more")
        found = ModelConfig.read(model_dir)
        if speculative and not found.mtp:
            raise ModelError(
                f"{model_dir}/config.json: this model has no MTP layer for --speculative"
            )
        if speculative and attention == "dp" and place.world > 1:
            raise UsageError("--speculative needs --attention tp: drafts are made on every rank")
        self.config = replace(found, mtp=speculative)
        limit = self.config.max_positions
        self.max_model_len = limit if max_model_len is None else max_model_len
        if not 0 < self.max_model_len <= limit:
            raise UsageError(
                f"max_model_len {self.max_model_len} is not between 1 and the model's "
                f"{self.config.max_positions}"
            )
        if gemm not in ARITHMETICS:
            raise UsageError(f"gemm {gemm!r} is unknown; {', '.join(ARITHMETICS)} are known")
        if gemm == "fp8" and not self.config.fp8:
            raise UsageError(
                f"gemm fp8 needs block-fp8 weights, and {model_dir} has none: leave --gemm out, or "
                "make them with python -m ref_dsinfer.fp8"
            )
        if gemm == "fp8" and self.config.ue8m0:
            raise UsageError(
                f"gemm fp8 does not know {model_dir}/config.json's scale_fmt ue8m0, which rounds "
                "activations' scales to powers of two: use --gemm bf16"
            )
        parallel.check(self.config, place.world, attention)
        checkpoint.check(model_dir, self.config, place.world)

        torch.set_num_threads(threads or max(1, parallel.cores() // place.local_world))
        began = time.monotonic()
        self.ranks = parallel.meet(place, where, attention)
        shares = self.ranks.shares
        self.seed = seed
        self.dtype = cpu.dtype_for(dtype, where.type)
        kind: torch.dtype = getattr(torch, self.dtype)
        model = Model.load(model_dir, self.config, kind, self.ranks, self.max_model_len)
        model.multiply_in(gemm)
        blocks = block_count(
            self.config,
            kind,
            self.ranks,
            longest=self.max_model_len,
            sequences=share_of(max_running, shares),
            block_size=block_size,
            tokens=cache_tokens and cache_tokens // shares,
        )
        pools = [BlockPool(blocks, block_size) for _ in range(shares)]
        self.scheduler = Scheduler(pools, max_running, step_tokens, MTP_STEPS if speculative else 0)
        kind_of_runner = SpeculativeRunner if speculative else Runner
        self.runner = kind_of_runner(model, blocks, block_size, kind, self.ranks)
        self.checked = self.accepted = 0  # runs of drafts; tokens that came of them
        self._sequences: dict[int, Sequence] = {}
        if graphs and where.type == "cuda" and not speculative:
            self.runner.use_graphs(share_of(max_running, shares), self.max_model_len)
        self.ranks.barrier()
        log.info("loaded %s on %s in %.1f s", model_dir, where, time.monotonic() - began)

    @property
    def busy(self) -> bool:
        """Whether `step` has anything to do."""
        return self.scheduler.busy

    def check(
        self,
        prompt_ids: tuple[int, ...],
        max_new_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
    ) -> None:
        """Refuse what `add` would refuse; may be called from any thread.

        Errors: LengthError for a prompt that is empty or leaves no room for one token; ModelError
        for ids the model does not know; UsageError for the other values.
        """
        if not 0 < len(prompt_ids) < self.max_model_len:
            raise LengthError(
                f"a prompt of {len(prompt_ids)} tokens does not fit a model length of "
                f"{self.max_model_len} with room for an answer"
            )
        if not 0 <= min(prompt_ids) <= max(prompt_ids) < self.config.vocab_size:
            raise ModelError(
                f"a prompt holds ids beyond the model's {self.config.vocab_size}: the tokenizer "
                "belongs to another model"
            )
        if max_new_tokens < 1:
            raise UsageError(f"max_new_tokens is {max_new_tokens}; it must be 1 or more")
        if not (0 <= temperature < math.inf and 0 < top_p <= 1):
            raise UsageError(
                f"temperature {temperature} and top_p {top_p} can't be sampled with: they must be "
                "0 or more, and above 0 up to 1"
            )

    def add(
        self,
        request_id: int,
        prompt_ids: tuple[int, ...],
        max_new_tokens: int,
        stop_ids: frozenset[int] = frozenset(),
        temperature: float = 0.0,
        top_p: float = 1.0,
    ) -> None:
        """Queue a request. Errors: those of `check`; ValueError if its id is in use."""
        self.check(prompt_ids, max_new_tokens, temperature, top_p)
        if request_id in self._sequences:
            raise ValueError(f"request {request_id} is open already")
        room = min(max_new_tokens, self.max_model_len - len(prompt_ids))
        sequence = Sequence(request_id, prompt_ids, room, stop_ids, temperature, top_p, self.seed)
        self._sequences[request_id] = sequence
        self.scheduler.add(sequence)

    def abort(self, request_id: int) -> None:
        """Forget a request and free its blocks; nothing happens if it has ended already."""
        if request_id in self._sequences:
            self._remove(self._sequences[request_id])

    def step(self) -> list[Output]:
        """Run one step: a token of each running answer, or several with drafts, and some of
        prompts."""
        work = self.scheduler.schedule()
        logits = self.runner.run(work)
        places = [
            (one.sequence, len(one.sequence.answer_ids) + number)
            for one in work
            for number in range(one.draws)
        ]
        drawn = iter(sample(logits, places, self.ranks))
        outputs = [
            self._append(one.sequence, list(islice(drawn, one.draws))) for one in work if one.draws
        ]
        if isinstance(self.runner, SpeculativeRunner):
            self.runner.draft(work)
        return outputs

    def close(self) -> None:
        """Part from the other ranks."""
        if self.checked:
            each, most = self.accepted / self.checked, MTP_STEPS + 1
            log.info("drafts: %.2f tokens of an answer in a step, of at most %d", each, most)
        self.ranks.leave()

    def _append(self, sequence: Sequence, drawn: list[int]) -> Output:
        """Add what was drawn after the last token and after right drafts, to the answer's end."""
        tokens = checked(sequence.drafts, drawn)
        if sequence.drafts:
            self.checked += 1
            self.accepted += len(tokens)
        sequence.drafts = []
        sequence.cached += len(tokens) - 1
        finish: Finish | None = None
        added: list[int] = []
        for token in tokens:
            if token in sequence.stop_ids:
                finish = "stop"
                break
            added.append(token)
        sequence.answer_ids += added
        if not finish and len(sequence.answer_ids) == sequence.max_new_tokens:
            finish = "length"
        if finish:
            self._remove(sequence)
        return Output(sequence.id, tuple(added), finish)

    def _remove(self, sequence: Sequence) -> None:
        del self._sequences[sequence.id]
        self.scheduler.remove(sequence)
