"""Command-line options that every script which runs an engine shares."""

import argparse
import os
from collections.abc import Iterable
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any

from backends import registry
from backends.types import OPTIONS, BackendSpec, EngineConfig, Group, Option
from benchmark import MAX_NEW_TOKENS, MODEL, REVISION
from errors import LaunchError, LengthError, ModelError, UsageError
from ref_dsinfer.config import CONFIG_FILE, read_config

MANY_OPTIONS = 20  # of an engine: too many to name them all

TITLES: dict[Group, str] = {
    "engine": "engine",
    "processes": "engine with processes of its own (vllm, sglang)",
    "servers": "servers that run already",
}


def positive_int(text: str) -> int:
    """An argparse type: a whole number above 0."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, not {value}")
    return value


def add_engine_options(
    parser: argparse.ArgumentParser, torchrun: bool = False, loadgen: bool = False
) -> None:
    """Add the options of an engine. Under torchrun the backend has a default, and the processes
    are torchrun's. `loadgen`: for a script that measures."""
    group = parser.add_argument_group(TITLES["engine"])
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
        "--model-path",
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
        "--max-new-tokens",
        type=positive_int,
        default=MAX_NEW_TOKENS,
        metavar="TOKENS",
        help=f"longest answer (default: {MAX_NEW_TOKENS}, the benchmark's)",
    )
    group.add_argument(
        "--engine-arg",
        type=_pair,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an option of the engine's own, by its own name; may be repeated",
    )
    groups: dict[Group, argparse._ArgumentGroup] = {"engine": group}
    exclusive: dict[str, argparse._MutuallyExclusiveGroup] = {}
    for name, option in OPTIONS.items():
        if (torchrun and option.group != "engine") or (option.loadgen and not loadgen):
            continue
        if option.group not in groups:
            groups[option.group] = parser.add_argument_group(TITLES[option.group])
        place = groups[option.group]
        if (word := option.exclusive) and word not in exclusive:
            exclusive[word] = place.add_mutually_exclusive_group()
        place = exclusive[word] if word else place
        place.add_argument(option.flag, *option.aliases, dest=name, **_argument(name, option))


def _argument(name: str, option: Option) -> dict[str, Any]:
    """What argparse is told of an option."""
    default = getattr(EngineConfig, name)
    about = option.help
    # a group's title tells which engines take all of it
    if not option.common and (option.group == "engine" or len(option.engines) == 1):
        about = f"{', '.join(option.engines)}: {about}"
    if option.kind == "switch":
        return {"action": "store_true", "help": about}
    if option.kind != "urls":
        shown = option.unset if default is None else default
        about += f" (default: {shown:g})" if isinstance(shown, float) else f" (default: {shown})"
    types = {"number": int, "count": positive_int, "share": _share, "urls": _urls}
    told = {"type": types.get(option.kind, str), "default": default, "help": about}
    if option.choices:
        return told | {"choices": option.choices}
    return told | {"metavar": option.metavar or "N"}


def own_names(engine: str) -> dict[str, str]:
    """An engine's own names of what our flags say, and the flags."""
    return {own: option.flag for option in OPTIONS.values() if (own := option.engines.get(engine))}


def own_arguments(engine: str, config: EngineConfig) -> dict[str, Any]:
    """What our flags say by an engine's own names; what is left to the engine is left out."""
    return {
        own: value
        for name, option in OPTIONS.items()
        if (own := option.engines.get(engine)) and (value := getattr(config, name)) is not None
    }


def engine_config(
    args: argparse.Namespace, spec: BackendSpec, world: int = 1, **fixed: Any
) -> EngineConfig:
    """The engine's configuration from the options; `world` is the number of processes torchrun has
    started, `fixed` fields are the script's own.

    Raises: UsageError for an option that this engine does not know; ModelError where the model
    can't be found.
    """
    asked = {
        name: getattr(args, name) for name in OPTIONS if hasattr(args, name)
    }  # no flag: torchrun
    changed = {name for name, value in asked.items() if value != getattr(EngineConfig, name)}
    special = {name for name in changed if not OPTIONS[name].common}
    if "endpoints" in special and spec.attached:
        if args.engine_arg or special - {"endpoints", "served_model"}:
            given = [OPTIONS[name].flag for name in special - {"endpoints", "served_model"}]
            given += ["--engine-arg"] * bool(args.engine_arg)
            raise UsageError(f"{', '.join(sorted(given))}: with --endpoint the server decides this")
    elif foreign := sorted(
        OPTIONS[name].flag for name in special if spec.name not in OPTIONS[name].engines
    ):
        raise UsageError(f"backend {spec.name} does not know {', '.join(foreign)}")
    if world > 1:
        asked["tensor_parallel"] = world
    return EngineConfig(
        model=find_model(args.model, args.revision),
        options=dict(args.engine_arg),
        **(asked | fixed),
    )


def refuse_unknown(backend: str, options: Iterable[str], known: Iterable[str]) -> None:
    """Raises: UsageError for the first of `options` that an engine does not know, naming the
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

    Raises: ModelError saying how to get it.
    """
    if Path(name).is_dir():
        return name
    parts = name.split("/")
    if len(parts) != 2 or not all(parts) or name[0] in "./~":
        raise ModelError(f"{name}: no such model directory")
    if revision is None and name == MODEL:
        revision = REVISION
    fix = f"hf download {name}" + (f" --revision {revision}" if revision else "")
    from huggingface_hub import snapshot_download

    try:
        return str(snapshot_download(name, revision=revision, local_files_only=True))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{name}: no such directory, and not in the local Hugging Face cache"
            f" (`{fix}`, or give a directory by --model)"
        ) from error


def model_length(config: EngineConfig) -> int:
    """Tokens of prompt and answer together: what the model's config.json says, or less if asked.

    Raises: ModelError where config.json is missing or says nothing; LengthError where more is asked
    for than the model has.
    """
    path = Path(config.model) / CONFIG_FILE
    length = read_config(config.model).get("max_position_embeddings")
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
        size = read_config(model).get("vocab_size")
    except ModelError:  # who loads it says why; servers need only its tokenizer
        return None
    return size if isinstance(size, int) else None


def require_mtp(model: str) -> None:
    """Refuse --speculative for a model without an MTP layer, before an engine loads for minutes.

    Raises: ModelError.
    """
    if not read_config(model).get("num_nextn_predict_layers"):
        raise ModelError(f"{model}/{CONFIG_FILE}: this model has no MTP layer for --speculative")


def choose_backend(args: argparse.Namespace, torchrun: bool) -> tuple[BackendSpec, int]:
    """The chosen engine, and the number of processes torchrun has started (1 without it).

    `torchrun` says whether the script is one of the `_mpi` twins.

    Raises: UsageError; LaunchError for a script started in the other twin's way.
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
