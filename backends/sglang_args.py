"""What SGLang is started with: our configuration in its words.

Tried on SGLang 0.5.23.
"""

import argparse
import os
import tempfile
from getpass import getuser
from pathlib import Path
from typing import NoReturn

import psutil
import torch
from sglang.srt.server_args import ServerArgs

from backends.options import model_length, own_arguments, own_names, refuse_unknown
from backends.types import EngineConfig
from benchmark import MTP_STEPS
from errors import ModelError, UsageError
from ref_dsinfer.config import CONFIG_FILE, read_config
from ref_dsinfer.cpu import dtype_for
from ref_dsinfer.weight_files import check_for_others

RESERVED = 6  # tokens of its context that SGLang gives to neither prompt nor answer
CPU_CACHE_BYTES = 4 << 30  # at most, where nobody asks for more: SGLang would take most memory
# SGLang's names of what our own flags say.
OWN_FLAGS = own_names("sglang") | {
    "model_path": "--model",
    "tokenizer_path": "--model",
    "revision": "--revision",
    "enable_dp_attention": "--attention-dp",
    "cuda_graph_backend_prefill": "--eager",
    "disable_cuda_graph": "--eager",
}
# What the backend says by itself: where the server is, and who may use it.
OURS = {"host", "port", "config", "api_key", "admin_api_key", "ssl_keyfile", "ssl_certfile"}


def arguments(config: EngineConfig, device: str) -> list[str]:
    """SGLang's command line, read by its own parser. Raises: UsageError; ModelError and
    CheckpointError for what it would find out after a while, in other words."""
    parser = _Parser(add_help=False, allow_abbrev=False)
    ServerArgs.add_cli_args(parser)
    flags = {
        flag.removeprefix("--").replace("-", "_"): action
        for action in parser._actions
        for flag in action.option_strings
    }
    options = {key.replace("-", "_"): value for key, value in config.options.items()}
    refuse_unknown("sglang", options, flags)
    if "load_format" not in options:  # else they may be of any kind, or none
        check_for_others(Path(config.model))
    for key in options:
        if own := OWN_FLAGS.get(flags[key].dest):
            raise UsageError(f"engine option {key}: use {own}")
        if flags[key].dest in OURS:
            raise UsageError(f"engine option {key}: the server is this run's own (--endpoint?)")
    if options.get("node_rank", "0") != "0":
        raise UsageError("engine option node_rank: this is the first node, number 0")
    given = _defaults(config, device) | options | _asked(config, device)
    words = [word for key, value in given.items() for word in _words(flags[key], key, value)]
    parser.parse_args(words)
    return words


def environment(config: EngineConfig, device: str, folder: Path) -> dict[str, str]:
    """The environment of SGLang's processes; what is set already mostly stays."""
    told = {
        # its temporary files go with its processes, but for what it has compiled
        "TORCHINDUCTOR_CACHE_DIR": f"{tempfile.gettempdir()}/torchinductor_{getuser()}",
        "HF_HUB_OFFLINE": "1",  # the model is here
    }
    forced = {
        "TMPDIR": str(folder),
        "SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN": "1",  # by what it reserves
        # a crash is to end at once
        "SGLANG_PYSPY_DUMP_BEFORE_CRASH": "0",
        "SGLANG_CUDA_COREDUMP_BEFORE_CRASH": "0",
    }
    if device == "cpu" and not config.compile:
        forced["TORCH_COMPILE_DISABLE"] = "1"  # parts of it are compiled unasked, by a C compiler
    if device == "cpu" and (count := processes(config)) > 1:
        shares = _cores(count)
        told["SGLANG_CPU_OMP_THREADS_BIND"] = "|".join(
            ",".join(map(str, cores)) for cores in shares
        )
        told["OMP_NUM_THREADS"] = str(len(shares[0]))
    return told | os.environ | forced


def _defaults(config: EngineConfig, device: str) -> dict[str, str]:
    """What we say where the user says nothing."""
    found = {
        "skip_tokenizer_init": "true",  # ids in, ids out
        "incremental_streaming_output": "true",
        "disable_radix_cache": "true",  # the rules: no query may use what another has left
        "sleep_on_idle": "true",
        "log_level_http": "warning",
    }
    if device == "cpu":
        found |= {"disable_overlap_schedule": "true"}
        if config.memory_share is None:
            found |= {"max_total_tokens": str(_cpu_tokens(config))}
    return found


def _asked(config: EngineConfig, device: str) -> dict[str, str]:
    """What our own flags say, in SGLang's words."""
    asked: dict[str, object] = {
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
    if config.speculative:  # what the benchmark's rules allow
        asked |= {
            "speculative_num_steps": MTP_STEPS,
            "speculative_eagle_topk": 1,
            "speculative_num_draft_tokens": MTP_STEPS + 1,
        }
    return {
        key: "true" if value is True else str(value)
        for key, value in asked.items()
        if value is not None and value is not False
    }


class _Parser(argparse.ArgumentParser):
    """Raises where argparse would end the process."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"SGLang: {message} (--engine-arg)")


def _words(action: argparse.Action, key: str, value: str) -> list[str]:
    """An option as the command line has it."""
    flag = action.option_strings[0]
    if action.nargs != 0:
        return [flag, *(value.split() if action.nargs in ("+", "*") else [value])]
    if value.lower() not in ("true", "false"):
        raise UsageError(f"engine option {key}={value}: it must be true or false")
    if value.lower() == "true":
        return [flag]
    return ["--no-" + flag[2:]] if "--no-" + flag[2:] in action.option_strings else []


def device_of(asked: str) -> str:
    """The device that SGLang is told to use. Raises: UsageError where there is none."""
    if asked == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            "--device cuda: torch, as installed, finds no GPU here"
            " (./setup.sh --backend sglang --device cuda)"
        )
    return "cuda" if asked == "cuda" or (asked == "auto" and torch.cuda.is_available()) else "cpu"


def _cpu_tokens(config: EngineConfig) -> int:
    """Tokens of cache on a CPU, where SGLang's own choice would be most of the memory.

    A token's is the compressed latent and the rotary key of every layer. At least one sequence of
    full length has a place.
    """
    model = read_config(config.model)
    try:
        values = model["num_hidden_layers"] * (model["kv_lora_rank"] + model["qk_rope_head_dim"])
        bytes_ = values * (4 if dtype_for(config.dtype, "cpu") == "float32" else 2)
    except (KeyError, TypeError) as error:
        raise ModelError(
            f"{config.model}/{CONFIG_FILE}: not of DeepSeek-V3's architecture"
        ) from error
    room = min(CPU_CACHE_BYTES, psutil.virtual_memory().available // 4)
    return max(room // bytes_, model_length(config) + RESERVED)


def processes(config: EngineConfig) -> int:
    """Processes that SGLang computes in."""
    return config.tensor_parallel * config.pipeline_parallel * config.data_parallel


def _cores(processes: int) -> list[list[int]]:
    """This machine's cores, a share for each process; shared out again where there are too few."""
    cores = sorted(os.sched_getaffinity(0))
    each = max(len(cores) // processes, 1)
    return [
        [cores[(first + core) % len(cores)] for core in range(each)]
        for first in range(0, each * processes, each)
    ]
