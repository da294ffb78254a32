"""Command-line options that every script which runs an engine shares."""

import argparse
import os
from collections.abc import Iterable
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any

from backends import registry
from backends.types import BackendSpec, EngineConfig
from benchmark import MAX_NEW_TOKENS, MODEL, REVISION
from errors import LaunchError, LengthError, ModelError, UsageError
from ref_dsinfer.cpu import DTYPES
from ref_dsinfer.lookalike import read_object

MANY_OPTIONS = 20  # of an engine: too many to name them all

# What not every engine knows, and the flag that asks for it.
FLAGS = {
    "tensor_parallel": "--tensor-parallel",
    "pipeline_parallel": "--pipeline-parallel",
    "data_parallel": "--data-parallel",
    "attention": "--attention",
    "attention_dp": "--attention-dp",
    "expert_parallel": "--expert-parallel",
    "memory_share": "--memory-share",
    "kv_dtype": "--kv-dtype",
    "quantization": "--quantization",
    "attention_backend": "--attention-backend",
    "gemm": "--gemm",
    "deterministic": "--deterministic",
    "eager": "--eager",
    "compile": "--compile",
    "speculative": "--speculative",
    "endpoints": "--endpoint",
    "served_model": "--served-model",
    "start_timeout": "--start-timeout",
}


def positive_int(text: str) -> int:
    """An argparse type: a whole number above 0."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, not {value}")
    return value


def add_engine_options(parser: argparse.ArgumentParser, torchrun: bool = False) -> None:
    """Add the options of an engine. Under torchrun the backend has a default, and the processes
    are torchrun's."""
    group = parser.add_argument_group("engine")
    chosen = os.environ.get("MLPERF_BACKEND") or ("pytorch" if torchrun else None)
    group.add_argument(
        "--backend",
        default=chosen,
        required=chosen is None,
        metavar="NAME",
        help=f"one of: {', '.join(registry.names())} (default: $MLPERF_BACKEND"
        + (", else pytorch)" if torchrun else ")"),
    )
    group.add_argument(
        "--model",
        default=os.environ.get("MLPERF_MODEL") or MODEL,
        metavar="DIR|ID",
        help="model directory, or the name of a model in the local Hugging Face cache"
        f" (default: $MLPERF_MODEL, else {MODEL})",
    )
    group.add_argument(
        "--revision",
        metavar="HASH",
        help=f"revision of a model named by ID (default for {MODEL}: {REVISION})",
    )
    group.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default=EngineConfig.device,
        help="default: auto",
    )
    group.add_argument(
        "--dtype",
        choices=DTYPES,
        default=EngineConfig.dtype,
        help="of activations; auto: bfloat16, but float32 on CPUs that can't multiply it"
        " (default: auto)",
    )
    group.add_argument(
        "--max-model-len",
        type=positive_int,
        metavar="TOKENS",
        help="longest prompt and answer together (default: what the model allows)",
    )
    group.add_argument(
        "--max-running",
        type=positive_int,
        metavar="N",
        help="sequences decoded at once, by each server (default: the engine's own)",
    )
    group.add_argument(
        "--attention",
        choices=("tp", "dp"),
        default=EngineConfig.attention,
        help="pytorch: what each process has of the attention, a part of its heads (tp) or of the"
        " requests, whose cache then is the sum of all processes' (dp) (default: tp)",
    )
    group.add_argument(
        "--gemm",
        choices=("bf16", "fp8"),
        help="pytorch: what block-fp8 weights are multiplied with: bf16 (W8A16), or activations"
        " rounded to fp8 as well (W8A8) (default: bf16)",
    )
    group.add_argument("--seed", type=int, default=EngineConfig.seed, help="default: 0")
    group.add_argument(
        "--engine-arg",
        type=_pair,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an option of the engine's own, by its own name; may be repeated",
    )
    group.add_argument(
        "--max-new-tokens",
        type=positive_int,
        default=MAX_NEW_TOKENS,
        metavar="TOKENS",
        help=f"longest answer (default: {MAX_NEW_TOKENS}, the benchmark's)",
    )
    group.add_argument(
        "--stall-timeout",
        type=positive_int,
        default=EngineConfig.stall_timeout,
        metavar="SECONDS",
        help="end the run when no token of any request has come for so long; offline, where answers"
        f" come whole, no answer (default: {EngineConfig.stall_timeout:g}; a warning comes after"
        " 30)",
    )
    if not torchrun:
        _add_own_process_options(parser)


def _add_own_process_options(parser: argparse.ArgumentParser) -> None:
    """Options of engines that make processes of their own, or run already."""
    group = parser.add_argument_group("engine with processes of its own (vllm, sglang)")
    for flag, what in (
        ("--tensor-parallel", "processes that share each layer"),
        ("--pipeline-parallel", "processes that share the layers among them"),
        ("--data-parallel", "replicas of the model, or of its attention"),
        ("--attention-dp", "sglang: parts of --tensor-parallel, each with requests of its own"),
    ):
        group.add_argument(
            flag, type=positive_int, default=1, metavar="N", help=f"{what} (default: 1)"
        )
    group.add_argument(
        "--expert-parallel",
        action="store_true",
        help="give each process whole experts, not a slice of each",
    )
    group.add_argument(
        "--memory-share",
        type=_share,
        metavar="SHARE",
        help="of a device's memory, for weights and cache together (default: the engine's own)",
    )
    group.add_argument(
        "--kv-dtype", metavar="TYPE", help="of the cache, e.g. fp8 (default: the engine's own)"
    )
    group.add_argument(
        "--quantization",
        metavar="NAME",
        help="of the weights, e.g. fp8 (default: what the model's config.json says)",
    )
    group.add_argument(
        "--attention-backend",
        metavar="NAME",
        help="sglang: kernels of the attention (default: the engine's own)",
    )
    group.add_argument(
        "--deterministic",
        action="store_true",
        help="sglang: the same answer whatever else is in the batch, at some cost",
    )
    speed = group.add_mutually_exclusive_group()
    speed.add_argument(
        "--eager", action="store_true", help="no compilation and no CUDA graphs: starts sooner"
    )
    speed.add_argument(
        "--compile", action="store_true", help="torch.compile, also where it is not the default"
    )
    group.add_argument(
        "--start-timeout",
        type=positive_int,
        default=EngineConfig.start_timeout,
        metavar="SECONDS",
        help=f"for loading and warming up (default: {EngineConfig.start_timeout:g})",
    )
    servers = parser.add_argument_group("servers that run already")
    servers.add_argument(
        "--endpoint",
        dest="endpoints",
        type=_urls,
        default=(),
        metavar="URL[,URL...]",
        help="use these, all of them as one system, instead of starting an engine; a key goes into"
        " $MLPERF_ENDPOINT_KEY. --model then names the tokenizer's directory",
    )
    servers.add_argument(
        "--served-model",
        metavar="NAME",
        help="what the servers call the model (default: the name of --model)",
    )


def engine_config(
    args: argparse.Namespace, spec: BackendSpec, world: int = 1, **fixed: Any
) -> EngineConfig:
    """The engine's configuration from the options; `world` is the number of processes torchrun has
    started, `fixed` fields are the script's own.

    Errors: UsageError for an option that this engine does not know; ModelError where the model
    can't be found.
    """
    asked = {
        name: getattr(args, name) for name in FLAGS if hasattr(args, name)
    }  # no flag: torchrun
    changed = {name for name, value in asked.items() if value != getattr(EngineConfig, name)}
    if "endpoints" in changed and spec.attached:
        if args.engine_arg or changed - {"endpoints", "served_model"}:
            given = [FLAGS[name] for name in changed - {"endpoints", "served_model"}]
            given += ["--engine-arg"] * bool(args.engine_arg)
            raise UsageError(f"{', '.join(sorted(given))}: with --endpoint the server decides this")
    elif foreign := sorted(FLAGS[name] for name in changed - spec.takes):
        raise UsageError(f"backend {spec.name} does not know {', '.join(foreign)}")
    if world > 1:
        asked["tensor_parallel"] = world
    return EngineConfig(
        model=find_model(args.model, args.revision),
        device=args.device,
        dtype=args.dtype,
        max_model_len=args.max_model_len,
        max_running=args.max_running,
        seed=args.seed,
        stall_timeout=args.stall_timeout,
        options=dict(args.engine_arg),
        **(asked | fixed),
    )


def refuse_unknown(backend: str, options: Iterable[str], known: Iterable[str]) -> None:
    """Errors: UsageError for the first of `options` that an engine does not know, naming the
    nearest that it does."""
    known = sorted(known)
    for name in options:
        if name not in known:
            if near := get_close_matches(name, known, 1):
                hint = f"; did you mean {near[0]}?"
            else:
                hint = f"; known: {', '.join(known)}" if len(known) < MANY_OPTIONS else ""
            raise UsageError(f"the {backend} engine has no option {name!r}{hint}")


def find_model(name: str, revision: str | None = None) -> str:
    """The local directory of a model. A model that is not on this machine is never downloaded:
    it may be 700 GB, and every rank of a run would fetch it.

    Errors: ModelError saying how to get it.
    """
    if Path(name).is_dir():
        return name
    parts = name.split("/")
    if len(parts) != 2 or not all(parts) or name[0] in "./~":
        raise ModelError(f"{name}: no such model directory")
    if revision is None and name == MODEL:
        revision = REVISION
    fix = f"hf download {name}" + (f" --revision {revision}" if revision else "")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ModelError(
            f"{name}: no such directory, and without huggingface_hub no cache to look into"
            " (give a directory by --model)"
        ) from error
    try:
        return str(snapshot_download(name, revision=revision, local_files_only=True))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{name}: no such directory, and not in the local Hugging Face cache"
            f" (`{fix}`, or give a directory by --model)"
        ) from error


def model_length(config: EngineConfig) -> int:
    """Tokens of prompt and answer together: what the model's config.json says, or less if asked.

    Errors: ModelError where config.json is missing or says nothing; LengthError where more is asked
    for than the model has.
    """
    path = Path(config.model) / "config.json"
    length = read_object(path).get("max_position_embeddings")
    if length is None:
        raise ModelError(f"{path}: names no max_position_embeddings")
    if not isinstance(length, int) or length < 1:
        raise ModelError(f"{path}: max_position_embeddings is {length!r}, not a length")
    if config.max_model_len is None:
        return length
    if config.max_model_len > length:
        raise LengthError(
            f"--max-model-len {config.max_model_len} is more than the model's length of {length}"
        )
    return config.max_model_len


@lru_cache
def vocabulary_size(model: str) -> int | None:
    """How many token ids a model has, where its config.json says so."""
    try:
        size = read_object(Path(model) / "config.json").get("vocab_size")
    except ModelError:  # who loads it says why; servers need only its tokenizer
        return None
    return size if isinstance(size, int) else None


def choose_backend(args: argparse.Namespace, torchrun: bool) -> tuple[BackendSpec, int]:
    """The chosen engine, and the number of processes torchrun has started (1 without it).

    `torchrun` says whether the script is one of the `_mpi` twins.

    Errors: UsageError; LaunchError for a script started in the other twin's way.
    """
    spec = registry.lookup(args.backend)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if not torchrun:
        if world > 1:
            raise LaunchError(
                f"this script is one process, but torchrun has started {world}: use its _mpi twin"
            )
        return spec, 1
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        raise LaunchError("start this script by torchrun: torchrun --nproc_per_node=N SCRIPT ...")
    if not spec.torchrun:
        raise UsageError(f"backend {spec.name} is not started by torchrun: use the script's twin")
    return spec, world


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"must be above 0 and at most 1, not {text}")
    return value


def _urls(text: str) -> tuple[str, ...]:
    return tuple(url.strip() for url in text.split(","))


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value
