"""A model directory's weight files: which there are, and whether they are complete."""

import contextlib
import json
import re
from itertools import count
from pathlib import Path

from safetensors import SafetensorError, safe_open

from errors import CheckpointError
from ref_dsinfer.deepseek_names import is_deepseeks
from ref_dsinfer.lookalike import AGAIN, HEAD, SAFETENSORS, read_object, what_it_is

INDEX = "model.safetensors.index.json"
RANK_FILE = re.compile(r"model\d+-mp(\d+)\.safetensors")
SIZE_TOLERANCE = 0.01  # of the index's total size, which may count the files' headers or not
HEADER_BYTES = 1 << 20  # of all files of a small model
SHARD = re.compile(r"model-(\d+)-of-(\d+)\.safetensors")
OTHER_KINDS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf", "*.incomplete")


def rank_file(rank: int, world_size: int) -> str:
    """Name of the file with one rank's weights."""
    return f"model{rank}-mp{world_size}.safetensors"


def hugging_face_files(model_dir: Path) -> list[Path]:
    """The files of a Hugging Face checkpoint; empty if there is none.

    Raises: CheckpointError if a file is missing that the index names or, without an index, that the
    other files' names imply.
    """
    index = model_dir / INDEX
    if not index.is_file():
        return [path] if (path := model_dir / "model.safetensors").is_file() else _shards(model_dir)
    names = read_object(index, CheckpointError).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise CheckpointError(f"{index} is no safetensors index: it has no weight_map of files")
    files = sorted(model_dir / name for name in set(names.values()))
    if missing := [file for file in files if not file.is_file()]:
        more = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
        link = " (a dangling symbolic link)" if missing[0].is_symlink() else ""
        raise CheckpointError(f"{missing[0]}{more} is missing{link}: {INDEX} names it: {AGAIN}")
    return files


def check_index(model_dir: Path) -> None:
    """Check that the files together hold what the index says, tensor by tensor and in bytes.

    Raises: CheckpointError; nothing without an index.
    """
    path = model_dir / INDEX
    if not path.is_file():
        return
    files, index = hugging_face_files(model_dir), read_object(path, CheckpointError)
    names: dict[str, set[str]] = {file.name: set() for file in files}
    for tensor, name in index["weight_map"].items():
        names[name].add(tensor)
    for file in files:
        with opened(file) as handle:
            missing = sorted(names[file.name] - set(handle.keys()))
        if missing:
            raise CheckpointError(
                f"{file} has no {missing[0]}, which {INDEX} says it holds: it is another model's or"
                f" revision's: {AGAIN}"
            )
    metadata = index.get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    size = sum(file.stat().st_size for file in files)
    if isinstance(total, int) and abs(size - total) > max(SIZE_TOLERANCE * total, HEADER_BYTES):
        raise CheckpointError(
            f"{model_dir}: the weight files have {size} bytes, and {INDEX} says {total}: {AGAIN}"
        )


def _shards(model_dir: Path) -> list[Path]:
    """The shards of a checkpoint without an index, if their names say that none is missing."""
    matches = {path: m for path in model_dir.iterdir() if (m := SHARD.fullmatch(path.name))}
    totals = {match[2] for match in matches.values()}
    if len(totals) > 1:
        raise CheckpointError(
            f"{model_dir} holds shards of {' and of '.join(sorted(totals))}, and no {INDEX} to "
            "tell which belong together: remove the others"
        )
    numbers = {int(match[1]) for path, match in matches.items() if path.is_file()}
    for total in totals:
        first = next(number for number in count(1) if number not in numbers)
        if first <= int(total):
            name = f"model-{first:0{len(total)}}-of-{total}.safetensors"
            raise CheckpointError(
                f"{model_dir / name} is missing: of {int(total)} shards {len(numbers)} are there, "
                f"and no {INDEX}: {AGAIN}"
            )
    return sorted(matches)


def locate(model_dir: Path, world_size: int) -> list[Path]:
    """The files that `world_size` ranks read: one a rank, or a whole Hugging Face checkpoint.

    Looks for the files of all ranks, so that every rank comes to the same result.
    Raises: CheckpointError naming the missing file, the world size, and the command to make it.
    """
    ranks = [model_dir / rank_file(rank, world_size) for rank in range(world_size)]
    missing = [path for path in ranks if not path.is_file()]
    if not missing:
        return ranks
    convert = (
        "python -m ref_dsinfer.convert --model-path HF_DIRECTORY "
        f"--output-path {model_dir} --model-parallel {world_size}"
    )
    if len(missing) < world_size:
        raise CheckpointError(
            f"{missing[0]} is missing for a world size of {world_size}: run {convert}"
        )
    if files := hugging_face_files(model_dir):
        return files
    if sizes := _world_sizes(model_dir):
        raise CheckpointError(
            f"{missing[0]} is missing: the weights were made for a world size of {sizes}, "
            f"this run has {world_size}; start as many processes, name the Hugging Face directory, "
            f"or run {convert}"
        )
    raise no_weights(model_dir)


def _world_sizes(model_dir: Path) -> str:
    """The world sizes that a directory has weight files for."""
    matches = (RANK_FILE.fullmatch(path.name) for path in model_dir.iterdir())
    return ", ".join(map(str, sorted({int(match[1]) for match in matches if match})))


def no_weights(model_dir: Path) -> CheckpointError:
    """The error for a directory without Hugging Face weights."""
    if sizes := _world_sizes(model_dir):
        return CheckpointError(
            f"{model_dir} holds no Hugging Face weights (*.safetensors), but weights split for a "
            f"world size of {sizes}"
        )
    others = sorted(path.name for kind in OTHER_KINDS for path in model_dir.glob(kind))
    if not others:
        return CheckpointError(f"{model_dir} holds no Hugging Face weights (*.safetensors)")
    return CheckpointError(
        f"{model_dir} holds no weights by a name that is known (model.safetensors, or "
        f"model-00001-of-….safetensors), but {others[0]}: download the model as safetensors"
    )


def check_for_others(model_dir: Path) -> None:
    """Refuse weights that vLLM or SGLang would fail on only after minutes.

    A directory without any safetensors is left to the engine, which may read other formats.
    Raises: CheckpointError for a file that is missing or incomplete, or split for `ref_dsinfer`.
    """
    for file in hugging_face_files(model_dir) or sorted(model_dir.glob("*.safetensors")):
        with opened(file) as handle:
            split = RANK_FILE.fullmatch(file.name)
            if split and (int(split[1]) > 1 or any(map(is_deepseeks, handle.keys()))):
                raise CheckpointError(
                    f"{file} holds one rank's weights, which only the pytorch backend reads: name "
                    "the Hugging Face directory that it was made from"
                )


def opened(file: Path) -> safe_open:
    """Open a safetensors file, as a context manager. Raises: CheckpointError."""
    try:
        return safe_open(file, "pt")
    except (OSError, SafetensorError) as error:
        raise unreadable(file, error) from error


def unreadable(file: Path, error: Exception) -> CheckpointError:
    """The error for a file that the library can't read, with what it is if that can be told."""
    try:
        with file.open("rb") as start:
            phrase = what_it_is(start.read(HEAD))
        if phrase in (SAFETENSORS, None):
            phrase = _torn(file)
    except OSError as failure:
        return CheckpointError(f"{file} can't be read: {failure.strerror}")
    if phrase:
        return CheckpointError(f"{file} is {phrase}")
    return CheckpointError(f"{file} can't be read as safetensors: {error}")


def _torn(file: Path) -> str | None:
    """What is wrong with the file's length, which follows from its header; None if nothing."""
    size = file.stat().st_size
    with file.open("rb") as start:
        header_size = int.from_bytes(start.read(8), "little")
        if size > 8 and start.peek(1)[:1] != b"{":
            return None
        header = start.read(header_size) if header_size < size else b""
    whole = 8 + header_size
    with contextlib.suppress(
        ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError
    ):
        entries = json.loads(header)  # if that is cut short itself, only its length is known
        entries.pop("__metadata__", None)
        whole += max(entry["data_offsets"][1] for entry in entries.values())
    if size < whole:
        return f"cut short, {size} of {whole} bytes or more: {AGAIN}"
    return None
