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

MANY_OPTIONS = 20  # of an engine: too many to list in a message

TITLES: dict[Group, str] = {
    "engine": "engine",
    "processes": "engine with its own processes (vllm, sglang)",
    "servers": "running servers",
}


def positive_int(text: str) -> int:
    """An argparse type: a whole number above 0."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, not {value}")
    return value


def whole_number(text: str) -> int:
    """An argparse type: a whole number, 0 or above."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be 0 or more, not {value}")
    return value


def add_engine_options(
    parser: argparse.ArgumentParser, torchrun: bool = False, loadgen: bool = False
) -> None:
    """Add the options of an engine. `torchrun`: for a script under torchrun, whose backend has a
    default and whose processes are torchrun's. `loadgen`: for a LoadGen run."""
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
        help=f"revision of a model given by ID (default for {MODEL}: {REVISION})",
    )
    group.add_argument(
        "--max-new-tokens",
        type=positive_int,
        default=MAX_NEW_TOKENS,
        metavar="TOKENS",
        help=f"tokens of an answer at most (default: {MAX_NEW_TOKENS}, the benchmark's)",
    )
    group.add_argument(
        "--engine-arg",
        type=_pair,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an option of the engine's own, by its name there; may be repeated",
    )
    groups: dict[Group, argparse._ArgumentGroup] = {"engine": group}
    exclusive: dict[str, argparse._MutuallyExclusiveGroup] = {}
    for name, option in OPTIONS.items():
        if (torchrun and option.group != "engine") or (option.loadgen and not loadgen):
            continue
        if option.group not in groups:
            groups[option.group] = parser.add_argument_group(TITLES[option.group])
        target = groups[option.group]
        if (word := option.exclusive) and word not in exclusive:
            exclusive[word] = target.add_mutually_exclusive_group()
        target = exclusive[word] if word else target
        target.add_argument(option.flag, *option.aliases, dest=name, **_argument(name, option))


def _argument(name: str, option: Option) -> dict[str, Any]:
    """argparse's keyword arguments for an option."""
    default = getattr(EngineConfig, name)
    about = option.help
    # a group's title names the engines that support all of it
    if not option.common and (option.group == "engine" or len(option.engines) == 1):
        about = f"{', '.join(option.engines)}: {about}"
    if option.kind == "switch":
        return {"action": "store_true", "help": about}
    if option.kind != "urls":
        shown = option.unset if default is None else default
        about += f" (default: {shown:g})" if isinstance(shown, float) else f" (default: {shown})"
    types = {"number": int, "count": positive_int, "fraction": _fraction, "urls": _urls}
    arguments = {"type": types.get(option.kind, str), "default": default, "help": about}
    if option.kind == "urls":
        arguments["action"] = _Append
    if option.choices:
        return arguments | {"choices": option.choices}
    return arguments | {"metavar": option.metavar or "N"}


def own_names(engine: str) -> dict[str, str]:
    """An engine's own names of the options that have a flag here, and the flags."""
    return {own: option.flag for option in OPTIONS.values() if (own := option.engines.get(engine))}


def own_arguments(engine: str, config: EngineConfig) -> dict[str, Any]:
    """The flags' values by an engine's own names, without those that are left to the engine."""
    return {
        own: value
        for name, option in OPTIONS.items()
        if (own := option.engines.get(engine)) and (value := getattr(config, name)) is not None
    }


def engine_config(
    args: argparse.Namespace, spec: BackendSpec, world_size: int = 1, **fixed: Any
) -> EngineConfig:
    """The engine's configuration from the command line; `fixed` fields are set by the script.

    Raises: UsageError for an option that this engine does not support, ModelError where the model
    can't be found.
    """
    # scripts under torchrun have fewer flags
    values = {name: getattr(args, name) for name in OPTIONS if hasattr(args, name)}
    changed = {name for name, value in values.items() if value != getattr(EngineConfig, name)}
    special = {name for name in changed if not OPTIONS[name].common}
    if "endpoints" in special and spec.attached:
        if args.engine_arg or special - {"endpoints", "served_model"}:
            flags = [OPTIONS[name].flag for name in special - {"endpoints", "served_model"}]
            flags += ["--engine-arg"] * bool(args.engine_arg)
            raise UsageError(f"{', '.join(sorted(flags))}: with --endpoint the server decides this")
    elif unsupported := sorted(
        OPTIONS[name].flag for name in special if spec.name not in OPTIONS[name].engines
    ):
        raise UsageError(f"backend {spec.name} does not support {', '.join(unsupported)}")
    if world_size > 1:
        values["tensor_parallel"] = world_size
    return EngineConfig(
        model=find_model(args.model, args.revision),
        options=dict(args.engine_arg),
        **(values | fixed),
    )


def refuse_unknown(backend: str, options: Iterable[str], known: Iterable[str]) -> None:
    """Raises: UsageError for the first of `options` that an engine lacks, with the nearest one that
    it has."""
    known = sorted(known)
    for name in options:
        if name not in known:
            if near := get_close_matches(name, known, 1):
                hint = f"; did you mean {near[0]}?"
            else:
                hint = f"; known: {', '.join(known)}" if len(known) < MANY_OPTIONS else ""
            raise UsageError(f"the {backend} engine has no option {name!r}{hint}")


def find_model(name: str, revision: str | None = None) -> str:
    """The local directory of a model. A model that is not here is never downloaded: it may have
    700 GB, and every rank of a run would fetch it.

    Raises: ModelError with the command that downloads it.
    """
    if Path(name).is_dir():
        return name
    parts = name.split("/")
    if len(parts) != 2 or not all(parts) or name[0] in "./~":
        raise ModelError(f"{name}: no such model directory")
    if revision is None and name == MODEL:
        revision = REVISION
    fix = f"`hf download {name}" + (f" --revision {revision}`" if revision else "`")
    if (name, revision) == (MODEL, REVISION):
        fix = f"`python -m data.fetch model` gets revision {REVISION}"
    from huggingface_hub import snapshot_download

    try:
        return str(snapshot_download(name, revision=revision, local_files_only=True))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{name}: no such directory, and not in the local Hugging Face cache"
            f" ({fix}, or give a directory by --model)"
        ) from error


def model_length(config: EngineConfig) -> int:
    """Tokens of prompt and answer together: --max-model-len, or the limit in config.json.

    Raises: ModelError where config.json is missing or has no limit, LengthError where
    --max-model-len is above it.
    """
    path = Path(config.model) / CONFIG_FILE
    length = read_config(config.model).get("max_position_embeddings")
    if length is None:
        raise ModelError(f"{path}: max_position_embeddings is missing")
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
    """The model's number of token ids, if its config.json states it."""
    try:
        size = read_config(model).get("vocab_size")
    except ModelError:  # the engine reports it when loading; servers need only the tokenizer
        return None
    return size if isinstance(size, int) else None


def require_mtp(model: str) -> None:
    """Refuse --speculative for a model without an MTP layer, before an engine loads for minutes.

    Raises: ModelError.
    """
    if not read_config(model).get("num_nextn_predict_layers"):
        raise ModelError(f"{model}/{CONFIG_FILE}: this model has no MTP layer for --speculative")


def choose_backend(args: argparse.Namespace, torchrun: bool) -> tuple[BackendSpec, int]:
    """The chosen engine, and torchrun's world size (1 without it).

    `torchrun`: whether the script is one of the `_mpi` twins.
    Raises: UsageError; LaunchError for a script that is started like its twin.
    """
    spec = registry.lookup(args.backend)
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if not torchrun:
        if world_size > 1:
            raise LaunchError(
                f"torchrun has started {world_size} processes of a script that must run in one: use"
                " its _mpi twin"
            )
        return spec, 1
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        raise LaunchError("start this script by torchrun: torchrun --nproc_per_node=N SCRIPT ...")
    if not spec.torchrun:
        raise UsageError(
            f"backend {spec.name} is not started by torchrun: use the script without _mpi"
        )
    return spec, world_size


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"must be above 0 and at most 1, not {text}")
    return value


def _urls(text: str) -> tuple[str, ...]:
    """URLs, separated by commas; of @FILE, those in its lines, without comments after #."""
    urls: list[str] = []
    for word in map(str.strip, text.split(",")):
        if not word.startswith("@"):
            urls.append(word)
            continue
        try:
            lines = Path(word[1:]).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeError) as error:
            raise argparse.ArgumentTypeError(f"{word[1:]} can't be read: {error}") from error
        listed = [line for line in (line.partition("#")[0].strip() for line in lines) if line]
        if not listed:
            raise argparse.ArgumentTypeError(f"{word[1:]} names no server: it needs a URL a line")
        urls += listed
    return tuple(urls)


class _Append(argparse.Action):
    """Adds the values of an option that is repeated."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        setattr(namespace, self.dest, (*getattr(namespace, self.dest), *values))


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value
