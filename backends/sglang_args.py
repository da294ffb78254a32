"""SGLang's command line and environment, from our configuration.

Tested with SGLang 0.5.23.
"""

import argparse
import os
import tempfile
from collections.abc import Sequence
from getpass import getuser
from pathlib import Path
from typing import NoReturn

import psutil
import sglang
import torch
from sglang.srt.server_args import ServerArgs

from backends.nodes import Span
from backends.options import model_length, own_arguments, own_names, refuse_unknown
from backends.types import EngineConfig
from benchmark import MTP_STEPS
from errors import UsageError
from ref_dsinfer.config import cached_values
from ref_dsinfer.cpu import dtype_for
from ref_dsinfer.weight_files import check_for_others

RESERVED = 6  # tokens of its context length that SGLang uses for neither prompt nor answer
CPU_CACHE_BYTES = 1 << 30  # default limit of the KV cache, which SGLang writes to at its start
# SGLang's names of options that have a flag of their own here.
OWN_FLAGS = own_names("sglang") | {
    "model_path": "--model",
    "tokenizer_path": "--model",
    "revision": "--revision",
    "enable_dp_attention": "--attention-dp",
    "cuda_graph_backend_prefill": "--eager",
    "disable_cuda_graph": "--eager",
}
# Of its command line, what differs from host to host.
OF_ONE_HOST = ("node-rank", "model-path")
# Set by the backend itself.
OURS = {"host", "port", "config", "api_key", "admin_api_key", "ssl_keyfile", "ssl_certfile"}


def arguments(config: EngineConfig, device: str) -> list[str]:
    """SGLang's command line, checked by its own parser.

    Raises: UsageError; ModelError and CheckpointError for what SGLang would refuse only minutes
    later.
    """
    parser = _Parser(add_help=False, allow_abbrev=False)
    ServerArgs.add_cli_args(parser)
    flags = {
        flag.removeprefix("--").replace("-", "_"): action
        for action in parser._actions
        for flag in action.option_strings
    }
    options = {key.replace("-", "_"): value for key, value in config.options.items()}
    refuse_unknown("sglang", options, flags)
    if "load_format" not in options:  # which may be for other formats, or no weights
        check_for_others(Path(config.model))
    for key in options:
        if own := OWN_FLAGS.get(flags[key].dest):
            raise UsageError(f"engine option {key}: use {own}")
        if flags[key].dest in OURS:
            raise UsageError(
                f"engine option {key} is set by this run (running servers: --endpoint)"
            )
    values = _defaults(config, device) | options | _flag_values(config, device)
    words = [word for key, value in values.items() for word in _words(flags[key], key, value)]
    parser.parse_args(words)
    return words


def span(config: EngineConfig) -> Span | None:
    """The hosts that SGLang's own options name. Raises: UsageError where a part is missing."""
    options = {key.replace("-", "_"): value for key, value in config.options.items()}
    count = int(options.get("nnodes", "1"))
    if count == 1:
        return None
    leader, _, port = options.get("dist_init_addr", "").rpartition(":")
    if not leader or not port.isdecimal():
        raise UsageError("engine option nnodes needs dist_init_addr=HOST:PORT, of the first host")
    return Span(int(options.get("node_rank", "0")), count, leader.strip("[]"), int(port))


def settings(words: Sequence[str]) -> dict[str, object]:
    """What all hosts of an SGLang must have in common; `words`: its command line."""
    same: dict[str, object] = {"SGLang": sglang.__version__}
    flag = ""
    for word in words:
        if word.startswith("--"):
            flag = word.removeprefix("--")
            same[flag] = ""
        else:
            same[flag] = f"{same[flag]} {word}".strip()
    return {name: value for name, value in same.items() if name not in OF_ONE_HOST}


def environment(
    config: EngineConfig, device: str, folder: Path, address: str = ""
) -> dict[str, str]:
    """The environment of SGLang's processes; variables that are set already win over defaults.

    `address`: this host's, among several.
    """
    defaults = {
        # outside TMPDIR, which is removed with the processes: compiled code is worth keeping
        "TORCHINDUCTOR_CACHE_DIR": f"{tempfile.gettempdir()}/torchinductor_{getuser()}",
        "HF_HUB_OFFLINE": "1",  # the model is here
    }
    if address:  # else it takes any of its interfaces
        defaults["SGLANG_HOST_IP"] = address
    forced = {
        "TMPDIR": str(folder),
        "SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN": "1",  # by RESERVED
        # a crash must end at once
        "SGLANG_PYSPY_DUMP_BEFORE_CRASH": "0",
        "SGLANG_CUDA_COREDUMP_BEFORE_CRASH": "0",
    }
    if device == "cpu" and not config.compile:
        forced["TORCH_COMPILE_DISABLE"] = "1"  # else parts are compiled, which needs a C compiler
    if device == "cpu" and (count := processes(config)) > 1:
        cores_by_process = _cores(count)
        defaults["SGLANG_CPU_OMP_THREADS_BIND"] = "|".join(
            ",".join(map(str, cores)) for cores in cores_by_process
        )
        defaults["OMP_NUM_THREADS"] = str(len(cores_by_process[0]))
    return defaults | os.environ | forced


def _defaults(config: EngineConfig, device: str) -> dict[str, str]:
    """Options that --engine-arg may override."""
    defaults = {
        "skip_tokenizer_init": "true",  # ids in, ids out
        "incremental_streaming_output": "true",
        "disable_radix_cache": "true",  # the rules: no query may reuse another's prefix
        "sleep_on_idle": "true",
        "log_level_http": "warning",
    }
    if device == "cpu":
        defaults |= {"disable_overlap_schedule": "true"}
        if config.memory_share is None:
            defaults |= {"max_total_tokens": str(_cpu_tokens(config))}
    return defaults


def _flag_values(config: EngineConfig, device: str) -> dict[str, str]:
    """The values of our own flags, by SGLang's names."""
    values: dict[str, object] = {
        "attention_backend": "torch_native" if device == "cpu" else None,
        **own_arguments("sglang", config),
        "model_path": config.model,
        "device": device,
        "dtype": dtype_for(config.dtype, device),
        "context_length": model_length(config) + RESERVED,
        "ep_size": config.tensor_parallel if config.expert_parallel else 1,
        "cuda_graph_backend_decode": "disabled" if config.eager else None,
        "cuda_graph_backend_prefill": "disabled" if config.eager else None,
        "speculative_algorithm": "EAGLE" if config.speculative else None,
    }
    if config.speculative:  # within the benchmark's rules
        values |= {
            "speculative_num_steps": MTP_STEPS,
            "speculative_eagle_topk": 1,
            "speculative_num_draft_tokens": MTP_STEPS + 1,
        }
    return {
        key: "true" if value is True else str(value)
        for key, value in values.items()
        if value is not None and value is not False
    }


class _Parser(argparse.ArgumentParser):
    """Raises UsageError where argparse would exit."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"SGLang: {message} (--engine-arg)")


def _words(action: argparse.Action, key: str, value: str) -> list[str]:
    """An option as words of a command line."""
    flag = action.option_strings[0]
    if action.nargs != 0:
        return [flag, *(value.split() if action.nargs in ("+", "*") else [value])]
    if value.lower() not in ("true", "false"):
        raise UsageError(f"engine option {key}={value}: it must be true or false")
    if value.lower() == "true":
        return [flag]
    return ["--no-" + flag[2:]] if "--no-" + flag[2:] in action.option_strings else []


def device_of(name: str) -> str:
    """SGLang's device for --device. Raises: UsageError where there is none."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            "--device cuda: the installed torch finds no GPU"
            " (./setup.sh --backend sglang --device cuda)"
        )
    return "cuda" if name != "cpu" and torch.cuda.is_available() else "cpu"


def _cpu_tokens(config: EngineConfig) -> int:
    """Tokens of the KV cache on a CPU, where SGLang's own choice would be most of the memory.

    A token has a compressed latent and a rotary key in every layer. At least one sequence of full
    length fits.
    """
    item_bytes = 4 if dtype_for(config.dtype, "cpu") == "float32" else 2
    bytes_ = cached_values(config.model) * item_bytes
    room = min(CPU_CACHE_BYTES, psutil.virtual_memory().available // 4)
    return max(room // bytes_, model_length(config) + RESERVED)


def processes(config: EngineConfig) -> int:
    """SGLang's number of worker processes."""
    return config.tensor_parallel * config.pipeline_parallel * config.data_parallel


def _cores(processes: int) -> list[list[int]]:
    """This machine's cores, divided among processes; used more than once if they are too few."""
    cores = sorted(os.sched_getaffinity(0))
    each = max(len(cores) // processes, 1)
    return [
        [cores[(first + core) % len(cores)] for core in range(each)]
        for first in range(0, each * processes, each)
    ]
