"""Weights on disk: which tensors a rank needs, how it reads them, and how weight files are written.

A model directory holds either a Hugging Face checkpoint or `model{rank}-mp{world_size}.safetensors`
made from one by `ref_dsinfer.convert`. Both keep Hugging Face's names, and `part_of` alone decides
what a rank's part is, so that a converted model and one that is sliced while loading are the same
bit for bit. DeepSeek's own `convert.py` writes the same parts under names of its own. A rank has a
contiguous range of the routed experts, each of them whole. With data-parallel attention a rank
needs whole attention weights, which in a converted model are spread over the files of all ranks.
"""

import contextlib
import json
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor, cat, uint8

from errors import CheckpointError, OutputError
from ref_dsinfer.config import ModelConfig
from ref_dsinfer.deepseek_names import hugging_face_name
from ref_dsinfer.files import write_whole
from ref_dsinfer.keys import QUANTIZATION_CONFIG
from ref_dsinfer.weight_files import RANK_FILE, locate, opened

LAYER = re.compile(r"model\.layers\.(\d+)\.")
INV_FREQ = ".rotary_emb.inv_freq"  # in older checkpoints; follows from the configuration
EXPERT = re.compile(r"\.mlp\.experts\.(\d+)\.")
# An MTP layer's embedding and head: copies of the model's.
REPEATED = (".embed_tokens.weight", ".shared_head.head.weight")
FP8 = "F8_E4M3"
ITEM_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "BF16": 2, "F16": 2, FP8: 1}

# The dimension along which a weight is split over ranks; modules not named here are replicated.
SPLIT_DIM = {
    "embed_tokens": 0,
    "lm_head": 0,
    "q_proj": 0,
    "q_b_proj": 0,
    "kv_b_proj": 0,
    "gate_proj": 0,
    "up_proj": 0,
    "o_proj": 1,
    "down_proj": 1,
}
SPLIT_BY_HEADS = {"q_proj", "q_b_proj", "kv_b_proj", "o_proj"}  # those of them in attention
LINEAR = SPLIT_DIM.keys() - {"embed_tokens", "lm_head"} | {"q_a_proj", "kv_a_proj_with_mqa"}


@dataclass(frozen=True)
class Entry:
    """A tensor of a safetensors file, as its header describes it."""

    name: str
    dtype: str  # safetensors' name: F32, BF16, F8_E4M3, …
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Piece(Entry):
    """A tensor, or the part of it that one rank loads; `shape` is the part's."""

    stored: str  # its name in the files
    files: tuple[Path, ...]  # several: each has a part of it, in order along `dim`
    dim: int | None = None  # along which it is sliced or concatenated; None: neither
    start: int = 0  # first index of a slice


def is_linear(name: str) -> bool:
    """Whether a tensor is a linear layer's weight, which fp8 checkpoints quantize."""
    return name.endswith(".weight") and module_of(name) in LINEAR


def module_of(name: str) -> str:
    """The module a tensor belongs to, by its own name: `q_b_proj` of `….q_b_proj.weight`."""
    return name.rpartition(".")[0].rpartition(".")[2]


def whole(file: Path) -> list[Piece]:
    """Every tensor of a file, under Hugging Face's name. Raises: CheckpointError."""
    with opened(file) as handle:
        slices = ((name, handle.get_slice(name)) for name in handle.keys())  # noqa: SIM118
        pieces = [
            Piece(hugging_face_name(n), s.get_dtype(), tuple(s.get_shape()), n, (file,))
            for n, s in slices
        ]
    for piece in pieces:
        if piece.dtype not in ITEM_BYTES:
            raise CheckpointError(
                f"{file} holds {piece.name} as {piece.dtype}, a type that is not supported"
            )
    return pieces


def check(model_dir: Path, config: ModelConfig, world_size: int) -> None:
    """Refuse what no rank can load, before the rendezvous.

    Raises: CheckpointError for a file that is missing, incomplete, or not what config.json says.
    """
    for file in locate(model_dir, world_size):
        check_kinds(whole(file), config)


def check_kinds(pieces: Iterable[Piece], config: ModelConfig) -> None:
    """Refuse fp8 weights where the configuration has none, and the reverse.

    Raises: CheckpointError.
    """
    for piece in pieces:
        if piece.dtype == FP8 and not config.fp8:
            raise CheckpointError(
                f"{piece.files[0]} holds {piece.name} in fp8, but config.json has no "
                "quantization_config: copy it from the model's original config.json; DeepSeek's is"
                f" {json.dumps(QUANTIZATION_CONFIG)}"
            )
        expected = config.fp8 and is_linear(piece.name) and is_used(piece.name, config)
        if expected and piece.dtype != FP8:
            raise CheckpointError(
                f"{piece.files[0]} holds {piece.name} as {piece.dtype}, but config.json's "
                "quantization_config says fp8: remove it if the weights were dequantized"
            )


def rank_pieces(
    model_dir: Path, config: ModelConfig, rank: int, world_size: int, attn_tp_size: int
) -> list[Piece]:
    """What one rank of `world_size` loads, file by file; the attention's heads are split over
    `attn_tp_size` of these ranks.

    Raises: CheckpointError if weights are missing or can't be split.
    """
    files = locate(model_dir, world_size)
    if not RANK_FILE.fullmatch(files[0].name):
        parts = (
            part_of(p, config, rank, world_size, attn_tp_size) for f in files for p in whole(f)
        )
        return [part for part in parts if part is not None]
    pieces = [piece for piece in whole(files[rank]) if is_used(piece.name, config)]
    if attn_tp_size == world_size:
        return pieces
    joined = [joined_of(p, files) for p in pieces if module_of(p.name) in SPLIT_BY_HEADS]
    return [p for p in pieces if module_of(p.name) not in SPLIT_BY_HEADS] + joined


def joined_of(piece: Piece, files: list[Path]) -> Piece:
    """The whole tensor, of which each rank's file has a part like `piece`."""
    dim = SPLIT_DIM[module_of(piece.name)]
    shape = list(piece.shape)
    shape[dim] *= len(files)
    return replace(piece, shape=tuple(shape), files=tuple(files), dim=dim)


def is_used(name: str, config: ModelConfig) -> bool:
    """Whether the model loads a tensor; not those of an MTP layer that does not draft."""
    if name.endswith(INV_FREQ):
        return False
    layer = LAYER.match(name)
    if layer is None or int(layer[1]) < config.layers:
        return True
    return config.mtp and int(layer[1]) == config.layers and not name.endswith(REPEATED)


def part_of(
    piece: Piece, config: ModelConfig, rank: int, world_size: int, attn_tp_size: int
) -> Piece | None:
    """A rank's part of a Hugging Face tensor; None if it has none. Scales are sliced like weights.

    Raises: CheckpointError if the tensor can't be split.
    """
    if not is_used(piece.name, config):
        return None
    if expert := EXPERT.search(piece.name):
        return piece if int(expert[1]) // (config.experts // world_size) == rank else None
    module = module_of(piece.name)
    dim = SPLIT_DIM.get(module)
    if dim is None or (attn_tp_size if module in SPLIT_BY_HEADS else world_size) == 1:
        return piece
    if dim >= len(piece.shape) or piece.shape[dim] % world_size:
        raise CheckpointError(f"{piece.name} {list(piece.shape)} can't be split in {world_size}")
    size = piece.shape[dim] // world_size
    shape = (*piece.shape[:dim], size, *piece.shape[dim + 1 :])
    return replace(piece, shape=shape, dim=dim, start=rank * size)


def read(pieces: Iterable[Piece]) -> Iterator[tuple[str, Tensor]]:
    """Read pieces one by one, with no more than their own files open (and mapped) at a time.

    Raises: CheckpointError.
    """
    for files, group in groupby(pieces, key=lambda piece: piece.files):
        try:
            with contextlib.ExitStack() as stack:
                handles = [stack.enter_context(opened(file)) for file in files]
                for piece in group:
                    if piece.dim is None:
                        yield piece.name, handles[0].get_tensor(piece.stored)
                    elif len(handles) > 1:
                        parts = [handle.get_tensor(piece.stored) for handle in handles]
                        yield piece.name, cat(parts, piece.dim)
                    else:
                        cut = slice(piece.start, piece.start + piece.shape[piece.dim])
                        part = handles[0].get_slice(piece.stored)
                        yield piece.name, part[cut] if piece.dim == 0 else part[:, cut]
        except (OSError, SafetensorError) as error:
            names = ", ".join(map(str, files))
            raise CheckpointError(f"{names} can't be read: {error}") from error


def write(path: Path, entries: Iterable[Entry], tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Write a safetensors file from tensors that come one by one, in any order.

    The library's own writer needs all of them in memory at once. Raises: OutputError.
    """
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    end = 0
    # Wide types first: readers view the bytes in place, which needs them aligned.
    for entry in sorted(entries, key=lambda entry: -ITEM_BYTES[entry.dtype]):
        start, end = end, end + ITEM_BYTES[entry.dtype] * _product(entry.shape)
        header[entry.name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)

    def fill(partial: Path) -> None:
        partial.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name, tensor in tensors:
                start, end = header[name]["data_offsets"]
                data = tensor.contiguous().flatten().view(uint8).numpy()
                if data.nbytes != end - start:
                    raise CheckpointError(f"{name} is {data.nbytes} bytes, not {end - start}")
                file.seek(8 + len(text) + start)
                file.write(data.data)

    write_whole(path, fill)


def _product(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def copy_side_files(source: Path, target: Path) -> None:
    """Copy the files beside a model's weights: configuration, tokenizer, chat template.

    Raises: OutputError.
    """
    patterns = ("*config.json", "tokenizer*", "special_tokens_map.json", "chat_template*")
    try:
        for file in {path for pattern in patterns for path in source.glob(pattern)}:
            if file.is_file() and source.resolve() != target.resolve():
                shutil.copyfile(file, target / file.name)
    except OSError as error:
        raise OutputError(f"{target}: can't be written: {error.strerror}") from error
