"""The engine: continuous batching over the model of `model_dir`.

Synchronous, and token ids only. Under torchrun every rank has an engine, which must get the same
calls in the same order and returns the same outputs.
"""

import logging
import math
import time
from dataclasses import asdict, replace
from itertools import islice, repeat
from pathlib import Path
from typing import Any

import torch

from errors import EngineError, LengthError, ModelError, UsageError
from ref_dsinfer import checkpoint, cpu, members, memory, parallel
from ref_dsinfer.blocks import BlockPool
from ref_dsinfer.cache import block_count, free_memory
from ref_dsinfer.config import CONFIG_FILE, ModelConfig
from ref_dsinfer.kernels import flashinfer_mla
from ref_dsinfer.model import Model
from ref_dsinfer.options import EngineOptions
from ref_dsinfer.parallel import RankInfo
from ref_dsinfer.rounding import ceil_div
from ref_dsinfer.runner import Runner
from ref_dsinfer.sampler import sample
from ref_dsinfer.scheduler import Scheduler, rank_tokens
from ref_dsinfer.sequence import Finish, Output, Sequence
from ref_dsinfer.speculative import SpeculativeRunner, accepted

log = logging.getLogger(__name__)


def _checked_config(model_dir: Path, options: EngineOptions, world_size: int) -> ModelConfig:
    """The model's configuration, with its MTP layer only where that is used.

    Raises: ModelError; UsageError for options that this model or world size does not allow.
    """
    config = ModelConfig.read(model_dir)
    path = model_dir / CONFIG_FILE
    if options.speculative and not config.mtp:
        raise ModelError(f"{path}: this model has no MTP layer for --speculative")
    if options.speculative and options.attention == "dp" and world_size > 1:
        raise UsageError("--speculative needs --attention tp: drafts are made on every rank")
    if (options.max_model_len or 0) > config.max_positions:
        raise UsageError(
            f"max_model_len is {options.max_model_len}; it must be at most the model's "
            f"{config.max_positions} ({path}: max_position_embeddings)"
        )
    if options.gemm == "fp8" and not config.fp8:
        raise UsageError(
            f"gemm fp8 needs block-fp8 weights, and {model_dir} has none: leave --gemm out, or "
            "make them with python -m ref_dsinfer.fp8"
        )
    if options.gemm == "fp8" and config.ue8m0:
        raise UsageError(
            f"gemm fp8 does not support scale_fmt ue8m0 of {path}, which rounds activations' "
            "scales to powers of two: use --gemm bf16"
        )
    return replace(config, mtp=options.speculative)


class Engine:
    """A model, ready to answer."""

    def __init__(
        self, model_dir: Path | str, options: EngineOptions | None = None, **changes: Any
    ) -> None:
        """Load this rank's part of the model; every rank must call this.

        `changes`: fields of `options`, or of its defaults, by name, such as dtype="float32".
        What every rank can find out from options and files is checked before the rendezvous, so
        that no rank waits for one that has failed.
        Raises: UsageError, ModelError, ParallelError, CheckpointError.
        """
        options = replace(options or EngineOptions(), **changes)
        model_dir = Path(model_dir)
        info = RankInfo.from_environment()
        device = parallel.choose_device(options.device, info)
        self.config = _checked_config(model_dir, options, info.world_size)
        self.max_model_len = options.max_model_len or self.config.max_positions
        parallel.check(self.config, info.world_size, options.attention)
        checkpoint.check(model_dir, self.config, info.world_size)

        dp_size = info.world_size if options.attention == "dp" else 1
        rank_running = ceil_div(options.max_running, dp_size)  # sequences of one rank
        runner_class = SpeculativeRunner if options.speculative else Runner
        drafts = runner_class.drafts
        step_tokens = rank_tokens(options.step_tokens, dp_size, rank_running, drafts)
        self.dtype = cpu.dtype_for(options.dtype, device.type)
        dtype: torch.dtype = getattr(torch, self.dtype)
        block_size = options.block_size
        library = None
        if options.kernels == "flashinfer":
            heads = self.config.heads * dp_size // info.world_size
            rows = max(step_tokens, rank_running * (1 + drafts))
            library = flashinfer_mla.load(self.config, heads, block_size, dtype, device, rows)
        self.kernels = library.name if library else "own"

        torch.set_num_threads(options.threads or max(1, parallel.cores() // info.local_world_size))
        start = time.monotonic()
        chosen = asdict(replace(options, device=device.type, dtype=self.dtype))
        settings = members.settings(model_dir, chosen | {"kernels": self.kernels})
        self.ranks = parallel.init_ranks(
            info, device, options.attention, options.symmetric_memory, settings
        )
        self.seed = options.seed
        if device.type == "cuda":
            run = memory.Run(
                self.config,
                dtype,
                *(info.world_size, options.attention),
                *(self.max_model_len, options.max_running, options.step_tokens),
            )
            memory.check(run, free_memory(self.ranks))
        model = Model.load(model_dir, self.config, dtype, self.ranks, self.max_model_len)
        model.multiply_in(options.gemm)
        shapes = (step_tokens, rank_running, self.max_model_len)
        graphs = options.graphs and device.type == "cuda"
        graph_bytes = 0
        if device.type == "cuda":  # whose allocator keeps what a step took: the cache gets the rest
            scratch = runner_class(model, 0, block_size, dtype, self.ranks, library)
            if graphs:
                graph_bytes = scratch.graph_bytes(*shapes)
            scratch.warm_up(step_tokens, rank_running)
            del scratch
        blocks = block_count(
            self.config,
            dtype,
            self.ranks,
            max_model_len=self.max_model_len,
            max_running=rank_running,
            block_size=block_size,
            tokens=options.cache_tokens and options.cache_tokens // dp_size,
            reserved=graph_bytes,
        )
        self.scheduler = Scheduler(
            [BlockPool(blocks, block_size) for _ in range(dp_size)],
            options.max_running,
            options.step_tokens,
            drafts,
        )
        self.runner = runner_class(model, blocks, block_size, dtype, self.ranks, library)
        size = blocks * block_size
        log.info(
            "the KV cache holds %d tokens in %d blocks, %.2f GiB",
            *(size, blocks, size * self.config.token_bytes(dtype.itemsize) / 2**30),
        )
        self.verified = 0  # times that a sequence's drafts were verified
        self.accepted = 0  # tokens that came of these: accepted drafts, and the one after them
        # Whether sequences decode in columns; drafts to verify can't.
        self.in_columns = not options.speculative
        self._sequences: dict[int, Sequence] = {}
        self._coalesce = options.coalesce
        self._ended: list[tuple[Sequence, Finish]] = []  # in this step
        if graphs:
            self.runner.fix_shapes(*shapes)
            began = time.monotonic()
            self.runner.capture_graphs()
            log.info("captured CUDA graphs in %.1f s", time.monotonic() - began)
        self.ranks.barrier()
        log.info("loaded %s on %s in %.1f s", model_dir, device, time.monotonic() - start)

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

        Raises: LengthError for a prompt that is empty or leaves no room for one token, ModelError
        for ids that the model does not have, UsageError for the other values.
        """
        if not 0 < len(prompt_ids) < self.max_model_len:
            raise LengthError(
                f"a prompt of {len(prompt_ids)} tokens does not fit a model length of "
                f"{self.max_model_len} with room for an answer"
            )
        if not 0 <= min(prompt_ids) <= max(prompt_ids) < self.config.vocab_size:
            raise ModelError(
                f"a prompt holds ids beyond the model's {self.config.vocab_size}: the tokenizer "
                "is another model's"
            )
        if max_new_tokens < 1:
            raise UsageError(f"max_new_tokens is {max_new_tokens}; it must be 1 or more")
        if not (0 <= temperature < math.inf and 0 < top_p <= 1):
            raise UsageError(
                f"temperature {temperature}, top_p {top_p}: the temperature must be 0 or more, and "
                "top_p above 0 and at most 1"
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
        """Queue a request. Raises: as `check`; ValueError if its id is in use."""
        self.check(prompt_ids, max_new_tokens, temperature, top_p)
        if request_id in self._sequences:
            raise ValueError(f"request {request_id} is open already")
        room = min(max_new_tokens, self.max_model_len - len(prompt_ids))
        sequence = Sequence(request_id, prompt_ids, room, stop_ids, temperature, top_p, self.seed)
        self._sequences[request_id] = sequence
        self.scheduler.add(sequence)

    def abort(self, request_id: int) -> None:
        """Drop a request and release its blocks; does nothing if it has finished already."""
        if request_id in self._sequences:
            self._remove(self._sequences[request_id])

    def step(self) -> list[Output]:
        """Run one step: every running sequence gets a token, or several with drafts, and prompts
        are prefilled with what is left of the step's token budget.

        Returns what each sequence got, or with `coalesce` the answers that have ended.
        """
        scheduled = self.scheduler.schedule()
        decoding = self.scheduler.decoding
        try:
            scores = self.runner.run(scheduled, decoding)
        except torch.OutOfMemoryError as error:
            self._shrink(error)
            return []
        targets: list[tuple[Sequence, int]] = []
        if decoding.drawn or any(item.sequence.temperature > 0 for item in scheduled):
            targets = [(sequence, len(sequence.answer_ids)) for sequence in decoding.sequences]
            targets += [
                (item.sequence, len(item.sequence.answer_ids) + offset)
                for item in scheduled
                for offset in range(item.samples)
            ]
        tokens = sample(scores, targets, self.ranks)
        count = len(decoding)
        outputs = self._decoded(tokens[:count])
        others = iter(tokens[count:])
        outputs += [
            self._append(item.sequence, list(islice(others, item.samples)))
            for item in scheduled
            if item.samples
        ]
        self.runner.draft(scheduled)
        ended, self._ended = self._ended, []
        if self._coalesce:
            return [Output(one.id, tuple(one.answer_ids), finish) for one, finish in ended]
        return outputs

    def _shrink(self, error: torch.OutOfMemoryError) -> None:
        """Go on with fewer sequences and tokens in a step after one that did not fit in memory.

        Raises: EngineError where that can't help, or other ranks wait in the step's collectives.
        """
        running, tokens = self.scheduler.max_running, self.scheduler.step_tokens
        if self.ranks.world_size > 1 or not self.scheduler.shrink():
            raise EngineError(
                f"the GPU has too little memory for a step of {tokens} tokens: lower --max-running"
                f" ({running}), or --engine-arg step_tokens or cache_tokens"
            ) from error
        torch.cuda.empty_cache()
        log.warning(
            "a step of up to %d tokens did not fit in the GPU's memory: going on with %d tokens"
            " and %d running sequences",
            *(tokens, self.scheduler.step_tokens, self.scheduler.max_running),
        )

    def close(self) -> None:
        """Free the CUDA graphs, which hold communicators, and leave the process group."""
        if self.verified:
            mean, most = self.accepted / self.verified, self.runner.drafts + 1
            log.info("drafts: %.2f tokens of an answer in a step, of at most %d", mean, most)
        self.runner.close()
        self.ranks.shutdown()

    def _decoded(self, tokens: list[int]) -> list[Output]:
        """Append to each decoding sequence what was sampled."""
        decoding = self.scheduler.decoding
        sequences = decoding.sequences[:]
        ended = decoding.append(tokens)
        outputs: list[Output] = []
        if not self._coalesce:
            ids = [sequence.id for sequence in sequences]
            outputs = list(map(Output._make, zip(ids, zip(tokens, strict=True), repeat(None))))
        for place, finish in ended.items():
            if not self._coalesce:
                new_ids = () if finish == "stop" else outputs[place].token_ids
                outputs[place] = Output(sequences[place].id, new_ids, finish)
            self._end(sequences[place], finish)
        return outputs

    def _append(self, sequence: Sequence, sampled: list[int]) -> Output:
        """Append what was sampled after the last token and after accepted drafts."""
        tokens = accepted(sequence.drafts, sampled)
        if sequence.drafts:
            self.verified += 1
            self.accepted += len(tokens)
        sequence.drafts = []
        sequence.cached += len(tokens) - 1
        finish: Finish | None = None
        new_ids: list[int] = []
        for token in tokens:
            if token in sequence.stop_ids:
                finish = "stop"
                break
            new_ids.append(token)
        sequence.answer_ids += new_ids
        if not finish and len(sequence.answer_ids) == sequence.max_new_tokens:
            finish = "length"
        if finish:
            self._end(sequence, finish)
        elif self.in_columns:
            self.scheduler.decoding.join(sequence)
        return Output(sequence.id, tuple(new_ids), finish)

    def _end(self, sequence: Sequence, finish: Finish) -> None:
        self._ended.append((sequence, finish))
        self._remove(sequence)

    def _remove(self, sequence: Sequence) -> None:
        del self._sequences[sequence.id]
        self.scheduler.remove(sequence)
