"""Command-line options that every script which runs an engine shares."""

import argparse
import os
from pathlib import Path
from typing import Any

from backends import registry
from backends.types import BackendSpec, EngineConfig
from ref_dsinfer.errors import LaunchError, ModelError, UsageError

DEFAULT_MODEL = "deepseek-ai/DeepSeek-R1"
DEFAULT_REVISION = "56d4cbbb4d29f4355bab4b9a39ccb717a14ad5ad"  # not R1-0528, which scores otherwise
MAX_NEW_TOKENS = 20_000  # the benchmark's


def positive_int(text: str) -> int:
    """An argparse type: a whole number above 0."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, not {value}")
    return value


def add_engine_options(parser: argparse.ArgumentParser, torchrun: bool = False) -> None:
    """Add the options of an engine. Under torchrun the backend has a default."""
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
        default=os.environ.get("MLPERF_MODEL") or DEFAULT_MODEL,
        metavar="DIR|ID",
        help="model directory, or the name of a model in the local Hugging Face cache"
        f" (default: $MLPERF_MODEL, else {DEFAULT_MODEL})",
    )
    group.add_argument(
        "--revision",
        metavar="HASH",
        help=f"revision of a model named by ID (default for {DEFAULT_MODEL}: {DEFAULT_REVISION})",
    )
    group.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default=EngineConfig.device,
        help="default: auto",
    )
    group.add_argument(
        "--dtype",
        choices=("bfloat16", "float32"),
        default=EngineConfig.dtype,
        help="of activations (default: bfloat16)",
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
        default=EngineConfig.max_running,
        metavar="N",
        help=f"sequences decoded at once (default: {EngineConfig.max_running})",
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


def engine_config(args: argparse.Namespace, **fixed: Any) -> EngineConfig:
    """The engine's configuration from the options; `fixed` fields are the script's own.

    Errors: ModelError where the model can't be found.
    """
    return EngineConfig(
        model=find_model(args.model, args.revision),
        device=args.device,
        dtype=args.dtype,
        max_model_len=args.max_model_len,
        max_running=args.max_running,
        seed=args.seed,
        options=dict(args.engine_arg),
        **fixed,
    )


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
    if revision is None and name == DEFAULT_MODEL:
        revision = DEFAULT_REVISION
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


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value
