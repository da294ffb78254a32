"""Block-fp8 weights: the format's definition in plain torch, and a command that writes it.

A weight W [..., rows, columns] is stored as e4m3 values Q and one fp32 scale S for each block of
128 × 128 (smaller at the edges): W ≈ Q · S. Checkpoints call S `weight_scale_inv`, although it is
multiplied with (DeepSeek-V3 technical report, section 3.3).

    python -m ref_dsinfer.fp8 --model-path IN --output-path OUT
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import entrypoint
from errors import UsageError
from ref_dsinfer import checkpoint, weight_files
from ref_dsinfer.config import CONFIG_FILE, ModelConfig, read_config
from ref_dsinfer.files import write_json
from ref_dsinfer.keys import FP8_BLOCK, QUANTIZATION_CONFIG
from ref_dsinfer.rounding import ceil_div

E4M3 = torch.float8_e4m3fn
LARGEST = torch.finfo(E4M3).max  # 448
SMALLEST_AMAX = 1e-4  # an all-zero block would otherwise have scale 0 and dequantise to NaN


def scale_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the scales of a weight of this shape."""
    rows, columns = (ceil_div(size, FP8_BLOCK) for size in shape[-2:])
    return (*shape[:-2], rows, columns)


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round a weight to e4m3 with one scale a block; returns (values, scales)."""
    blocks = _blocks(weight.float())
    scale = blocks.abs().amax(dim=(-3, -1)).clamp(min=SMALLEST_AMAX) / LARGEST
    values = blocks / scale[..., :, None, :, None]
    return _unblocked(values, weight.shape).to(E4M3), scale


def dequantise(values: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Multiply e4m3 values by their blocks' scales in fp32, and round once to `dtype`."""
    weight = _blocks(values.float()) * scale[..., :, None, :, None]
    return _unblocked(weight, values.shape).to(dtype)


def quantise_rows(x_TI: Tensor) -> tuple[Tensor, Tensor]:
    """Round activations to e4m3, with one scale for each 128 values of a row or its shorter rest.

    Returns (values [T, I], scales [T, I / 128] fp32).
    """
    groups = F.pad(x_TI.float(), (0, -x_TI.shape[1] % FP8_BLOCK)).unflatten(1, (-1, FP8_BLOCK))
    scale = groups.abs().amax(dim=-1).clamp(min=SMALLEST_AMAX) / LARGEST
    values = (groups / scale[..., None]).flatten(1)[:, : x_TI.shape[1]]
    return values.to(E4M3), scale


def dequantise_rows(values: Tensor, scale: Tensor) -> Tensor:
    """The reverse of `quantise_rows`, in fp32 [T, I]."""
    return values.float() * scale.repeat_interleave(FP8_BLOCK, dim=1)[:, : values.shape[1]]


def _blocks(weight: Tensor) -> Tensor:
    """View [..., R, C] as [..., R/128, 128, C/128, 128], padded with zeros if need be."""
    rows, columns = weight.shape[-2:]
    if rows % FP8_BLOCK or columns % FP8_BLOCK:
        weight = F.pad(weight, (0, -columns % FP8_BLOCK, 0, -rows % FP8_BLOCK))
    return weight.unflatten(-2, (-1, FP8_BLOCK)).unflatten(-1, (-1, FP8_BLOCK))


def _unblocked(blocks: Tensor, shape: torch.Size) -> Tensor:
    return blocks.flatten(-2).flatten(-3, -2)[..., : shape[-2], : shape[-1]]


def write_twin(source: Path, target: Path) -> None:
    """Write a block-fp8 twin of a Hugging Face checkpoint, one weight in memory at a time.

    Raises: ModelError, CheckpointError for the source; UsageError if it is fp8 already or is the
    target itself; OutputError if the target can't be written.
    """
    config = ModelConfig.read(source)
    if config.fp8:
        raise UsageError(f"{source} is block-fp8 already")
    if source.resolve() == target.resolve():
        raise UsageError(f"{target} is the source itself: choose another --output-path")
    files = weight_files.hugging_face_files(source)
    if not files:
        raise weight_files.no_weights(source)
    weight_map = {}
    for file in files:
        pieces = checkpoint.whole(file)
        checkpoint.check_kinds(pieces, config)
        entries, tensors = _quantised(pieces)
        checkpoint.write(target / file.name, entries, tensors)
        weight_map.update(dict.fromkeys((entry.name for entry in entries), file.name))
    twin_config = read_config(source) | {"quantization_config": QUANTIZATION_CONFIG}
    checkpoint.copy_side_files(source, target)
    write_json(target / CONFIG_FILE, twin_config)
    if len(files) > 1:
        write_json(target / weight_files.INDEX, {"metadata": {}, "weight_map": weight_map})


def _quantised(
    pieces: list[checkpoint.Piece],
) -> tuple[list[checkpoint.Entry], Iterator[tuple[str, Tensor]]]:
    """The entries and the tensors of one file's twin, in the same order."""
    entries = []
    for piece in pieces:
        if checkpoint.is_linear(piece.name):
            entries.append(checkpoint.Entry(piece.name, "F8_E4M3", piece.shape))
            scales = checkpoint.Entry(scale_name(piece.name), "F32", scale_shape(piece.shape))
            entries.append(scales)
        else:
            entries.append(checkpoint.Entry(piece.name, piece.dtype, piece.shape))

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in checkpoint.read(pieces):
            if checkpoint.is_linear(name):
                values, scale = quantise(tensor)
                yield name, values
                yield scale_name(name), scale
            else:
                yield name, tensor

    return entries, tensors()


def scale_name(weight_name: str) -> str:
    """The checkpoint's name of a weight's scales."""
    return f"{weight_name}_scale_inv"


def main() -> None:
    """Parse the command line and write the twin."""
    parser = argparse.ArgumentParser(
        prog="ref_dsinfer.fp8",
        description="Write a block-fp8 twin of a Hugging Face checkpoint.",
    )
    parser.add_argument("--model-path", type=Path, required=True, help="Hugging Face directory")
    parser.add_argument("--output-path", type=Path, required=True, help="directory to write")
    args = parser.parse_args()
    write_twin(args.model_path, args.output_path)
    print(f"wrote {args.output_path}")


if __name__ == "__main__":
    entrypoint.run(main)
