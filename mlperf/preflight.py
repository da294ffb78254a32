"""What can be found out before an engine starts: whether machine, model and data allow the run.

Options, user.conf, the data set's columns, tokenizer and chat template have been read by then, and
raise errors of their own; an engine's class checks its own options and the weight files.
"""

import argparse
import logging
import os
import resource
import shutil
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backends.types import OPTIONS, BackendSpec, EngineConfig
from benchmark import ROWS, TOKENS_MAX
from data import official
from data.identity import FP8, R1, identify
from errors import CheckpointError, ModelError, OutputError, UsageError, UserError
from mlperf import settings
from mlperf.machine import GIB, ask_gpus
from ref_dsinfer.config import ModelConfig, cached_values
from ref_dsinfer.cpu import dtype_for

if TYPE_CHECKING:
    from data.workload import Workload

log = logging.getLogger(__name__)

# Bytes on disk of a token of an answer: 4 in the journal, and with its text 8 in each of the two
# results files. An accuracy run has twice as many of these, and 8 in LoadGen's log.
TOKEN_BYTES, ACCURACY_TOKEN_BYTES = 20, 44
SPARE_BYTES = 64 << 20  # logs and everything else
SPARE_DESCRIPTORS = 64
# Parts of the names of engines' options that place processes or weights elsewhere than on this
# host's devices, or shrink weights: nothing is known about memory then.
ELSEWHERE = ("node", "offload", "load_format", "quantization", "local", "address", "backend")
_REFUSAL = f"  {'submittable':<12} no, because "  # begins a line of `describe`
LOADED = 0.95  # of the weight files' bytes, at least: not all engines load the MTP layer


@dataclass(frozen=True)
class Plan:
    """A run that is about to start."""

    args: argparse.Namespace
    spec: BackendSpec
    config: EngineConfig
    workload: "Workload"
    test_settings: Any  # LoadGen's
    folder: Path  # of the results
    logs: Path  # folder of LoadGen's logs

    @property
    def processes(self) -> int:
        """The engine's processes on this host."""
        if self.spec.torchrun:
            return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        config = self.config
        return config.tensor_parallel * config.pipeline_parallel * config.data_parallel

    @cached_property
    def samples(self) -> int:
        """Samples that LoadGen will issue."""
        return settings.expected_samples(self.test_settings, len(self.workload))

    @property
    def longest(self) -> int:
        """Tokens of the longest request, prompt and answer."""
        prompt = max(map(len, self.workload.prompt_ids))
        return min(prompt + self.workload.max_new_tokens, self.workload.max_len)

    @property
    def disk_bytes(self) -> int:
        """What the run will write, with answers as long as the benchmark allows on average."""
        mean = min(self.workload.max_new_tokens, TOKENS_MAX)
        token_bytes = ACCURACY_TOKEN_BYTES if self.args.accuracy else TOKEN_BYTES
        return int(self.samples * mean * token_bytes) + SPARE_BYTES


def check(plan: Plan) -> list[str]:
    """Log all that speaks against the run; returns why its result can't be submitted.

    Raises: the first of the errors found, all others are logged before.
    """
    errors = [*_weights(plan), *_memory(plan), *_disk(plan), *_descriptors(plan), *_ports(plan)]
    for error in errors[1:]:
        log.error("%s", error)
    if errors:
        raise errors[0]
    return [*_data_set(plan), *_model(plan)]


def describe(plan: Plan, reasons: list[str]) -> str:
    """The effective configuration, as --dry-run prints it. `reasons`: why the run can't be
    submitted."""
    config, workload = plan.config, plan.workload
    changed = [
        f"{option.flag} {value}"
        for name, option in OPTIONS.items()
        if (value := getattr(config, name)) != getattr(EngineConfig, name)
    ]
    changed += [f"--engine-arg {name}={value}" for name, value in config.options.items()]
    seconds = settings.expected_seconds(plan.test_settings, plan.samples, plan.args.accuracy)
    inputs = workload.inputs(plan.spec.name, config)
    mean = sum(map(len, workload.prompt_ids)) / len(workload)
    free = shutil.disk_usage(plan.folder).free
    rows = [
        ("model", f"{config.model}: {identify(config.model)}"),
        (
            "data set",
            f"{plan.args.input_file}: {len(workload)} rows, prompts of {mean:.1f} tokens on"
            f" average, {inputs['the data set']}",
        ),
        ("engine", " ".join([plan.spec.name, *changed])),
        ("longest", f"{plan.longest} tokens of prompt and answer"),
        ("results", f"{plan.folder}: {_size(plan.disk_bytes)} of {_size(free)} free"),
        ("duration", f"about {_duration(seconds)}" if seconds else "unknown without a target rate"),
    ]
    lines = [settings.describe(plan.args, plan.test_settings, len(workload))]
    lines += [f"  {name:<12} {text}" for name, text in rows]
    return "\n".join([*lines, *(f"{_REFUSAL}{reason}" for reason in reasons)])


def described_reasons(text: str) -> list[str]:
    """The reasons in what `describe` has returned."""
    lines = text.splitlines()
    return [line.removeprefix(_REFUSAL) for line in lines if line.startswith(_REFUSAL)]


def _data_set(plan: Plan) -> Iterator[str]:
    """Whether rows that are as many as the benchmark's are the benchmark's."""
    if len(plan.workload) != ROWS:
        return  # which is a reason of its own
    path = plan.args.input_file
    if different := official.task_differences(Counter(row.task for row in plan.workload.samples)):
        yield f"{path} has {different[0]}"
    mean = sum(map(len, plan.workload.prompt_ids)) / ROWS
    if difference := official.length_difference(mean):
        yield (
            f"{path}: {difference}: is it the original file, and {plan.config.model} R1's"
            " tokenizer?"
        )


def _model(plan: Plan) -> Iterator[str]:
    """Whether the model is the benchmark's."""
    identity = identify(plan.config.model)
    yield from (f"{plan.config.model}: {one}" for one in identity.objections())
    if identity.name == R1 and identity.weights not in (FP8, None):
        log.warning(
            "%s: this is %s: the rules allow a closed submission only weights that were quantized"
            " from the benchmark's",
            *(plan.config.model, identity),
        )


def _weights(plan: Plan) -> Iterator[UserError]:
    """Whether the weight files hold what the index says."""
    from ref_dsinfer.weight_files import check_index

    # with a format of their own, weights may be in other files, or be none
    if plan.config.endpoints or "load_format" in _option_names(plan):
        return
    try:
        check_index(Path(plan.config.model))
    except CheckpointError as error:
        yield error


def _memory(plan: Plan) -> Iterator[UserError]:
    """Whether weights and the KV cache of the longest request fit in each process's memory."""
    import psutil

    config, names = plan.config, _option_names(plan)
    if config.endpoints or plan.spec.hidden:
        return
    if config.quantization or any(part in name for name in names for part in ELSEWHERE):
        return
    processes, device, free = plan.processes, "cpu", psutil.virtual_memory().available
    free //= processes
    gpus = [] if config.device == "cpu" else _free_on_gpus()
    if gpus:
        device = "cuda"
        if processes > len(gpus):
            yield UsageError(
                f"{processes} processes need a GPU each, and {len(gpus)} are visible (nvidia-smi,"
                " CUDA_VISIBLE_DEVICES): start fewer, or use more hosts"
            )
            return
        free = min(gpus[:processes])
    item_bytes = 4 if dtype_for(config.dtype, device) == "float32" else 2
    if config.kv_dtype and config.kv_dtype.startswith("fp8"):
        item_bytes = 1
    if plan.spec.torchrun:
        model = replace(ModelConfig.read(Path(config.model)), mtp=config.speculative)
        if device == "cuda":
            yield from _own_memory(plan, model, item_bytes, free)
            return
        weights, token_bytes = _own_weights(plan, model), model.token_bytes(item_bytes)
    else:
        weights = _others_weights(plan)
        token_bytes = _others_values(plan) * item_bytes // config.pipeline_parallel
    cache = plan.longest * token_bytes
    if weights + cache > free:
        yield UsageError(
            f"{config.model}: {_size(weights)} of weights and {_size(cache)} of KV cache for the"
            f" longest request ({plan.longest} tokens) are more than the {_size(free)} that are"
            f" free for each process of this host ({processes}): split the model over more GPUs,"
            " lower --max-model-len, or end what else uses this memory"
        )


def _own_memory(plan: Plan, model: ModelConfig, item_bytes: int, free: int) -> Iterator[UserError]:
    """What our own engine would refuse on GPUs."""
    import torch

    from ref_dsinfer import memory
    from ref_dsinfer.options import EngineOptions

    config = plan.config
    run = memory.Run(
        model,
        torch.float32 if item_bytes == 4 else torch.bfloat16,
        config.tensor_parallel,
        config.attention,
        plan.longest,
        config.max_running or EngineOptions.max_running,
        int(config.options.get("step_tokens", EngineOptions.step_tokens)),
    )
    try:
        memory.check(run, free)
    except UserError as error:
        yield error


def _disk(plan: Plan) -> Iterator[UserError]:
    """Whether there is room for what the run will write; probes for a rate write little."""
    free = shutil.disk_usage(plan.folder).free
    if plan.args.find_target_qps or free >= plan.disk_bytes:
        return
    error = OutputError(
        f"{plan.folder}: {_size(free)} are free, and {plan.samples} answers take about"
        f" {_size(plan.disk_bytes)}: free some, or choose another --output-dir"
    )
    if len(plan.workload) == ROWS:
        yield error
    else:
        log.warning("%s", error)  # the answers to other data may be short


def _descriptors(plan: Plan) -> Iterator[UserError]:
    """Whether there are descriptors for the connections to running servers."""
    if not plan.config.endpoints:
        return
    from backends.http_client import addresses  # needs packages, which --help shall not

    connections = plan.samples
    if plan.config.max_running:
        servers = sum(max(1, len(addresses(url))) for url in plan.config.endpoints)
        connections = min(connections, plan.config.max_running * servers)
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit != resource.RLIM_INFINITY and limit < connections + SPARE_DESCRIPTORS:
        yield UsageError(
            f"up to {connections} connections need as many file descriptors, and the limit is"
            f" {limit}: raise it (ulimit -Hn), or set --max-running"
        )


def _ports(plan: Plan) -> Iterator[UserError]:
    """Whether ports that an engine is told to use are free."""
    for name, value in plan.config.options.items():
        text = value.rpartition(":")[2]
        if not name.replace("-", "_").endswith(("port", "addr")) or not text.isdecimal():
            continue
        with closing(socket.socket()) as probe:
            try:
                probe.bind(("", int(text)))
            except OverflowError:
                yield UsageError(f"--engine-arg {name}={value}: {text} is no port")
            except OSError as error:
                yield UsageError(
                    f"--engine-arg {name}={value}: port {text} can't be used: {error.strerror}"
                )


def _own_weights(plan: Plan, model: ModelConfig) -> int:
    """Bytes of the weights that a process of our engine loads at least."""
    from ref_dsinfer.checkpoint import ITEM_BYTES, is_used, whole
    from ref_dsinfer.weight_files import locate

    total = sum(
        prod(piece.shape) * ITEM_BYTES[piece.dtype]
        for file in locate(Path(plan.config.model), plan.config.tensor_parallel)
        for piece in whole(file)
        if is_used(piece.name, model)
    )
    return total // plan.config.tensor_parallel


def _others_weights(plan: Plan) -> int:
    """The same of an engine that may read formats that ours does not, from the files' sizes."""
    from ref_dsinfer.weight_files import hugging_face_files

    files = hugging_face_files(Path(plan.config.model))
    parts = plan.config.tensor_parallel * plan.config.pipeline_parallel
    return int(LOADED * sum(file.stat().st_size for file in files)) // parts


def _others_values(plan: Plan) -> int:
    """Values of a token in the KV cache; 0 if the attention is another than DeepSeek's."""
    try:
        return cached_values(plan.config.model)
    except ModelError:
        return 0


def _free_on_gpus() -> list[int]:
    """Free bytes on each visible GPU; empty if none reports its memory."""
    free = [int(mib) << 20 for (mib,) in ask_gpus("memory.free") if mib.isdecimal()]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return free
    names = [name for name in visible.split(",") if name.strip()]
    if all(name.strip().isdecimal() for name in names):
        return [free[int(name)] for name in names if int(name) < len(free)]
    return free[: len(names)]  # by UUID: how many is all that is known


def _option_names(plan: Plan) -> list[str]:
    """Names of the engine's own options, as the engines spell them in Python."""
    return [name.replace("-", "_") for name in plan.config.options]


def _size(count: int) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB / 10 else f"{count / (1 << 20):.1f} MiB"


def _duration(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    if hours >= 2:
        return f"{hours:.1f} h"
    return f"{minutes:.0f} min" if minutes >= 2 else f"{seconds:.0f} s"
