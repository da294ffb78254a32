"""Write a block-fp8 twin of a Hugging Face checkpoint, in the format of `fp8_format`.

python -m ref_dsinfer.fp8 --model-path IN --output-path OUT
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import entrypoint
from errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from ref_dsinfer.checkpoint import Entry, Piece


def write_twin(source: Path, target: Path) -> None:
    """Write a block-fp8 twin of a Hugging Face checkpoint, one weight in memory at a time.

    Raises: ModelError, CheckpointError for the source; UsageError if it is fp8 already or is the
    target itself; OutputError if the target can't be written.
    """
    from ref_dsinfer import checkpoint, weight_files
    from ref_dsinfer.config import CONFIG_FILE, ModelConfig, read_config
    from ref_dsinfer.files import write_json
    from ref_dsinfer.keys import QUANTIZATION_CONFIG

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


def _quantised(pieces: "list[Piece]") -> "tuple[list[Entry], Iterator[tuple[str, Tensor]]]":
    """The entries and the tensors of one file's twin, in the same order."""
    from ref_dsinfer.checkpoint import Entry, is_linear, read
    from ref_dsinfer.fp8_format import quantise, scale_name, scale_shape

    entries = []
    for piece in pieces:
        if is_linear(piece.name):
            entries.append(Entry(piece.name, "F8_E4M3", piece.shape))
            entries.append(Entry(scale_name(piece.name), "F32", scale_shape(piece.shape)))
        else:
            entries.append(Entry(piece.name, piece.dtype, piece.shape))

    def tensors() -> "Iterator[tuple[str, Tensor]]":
        for name, tensor in read(pieces):
            if is_linear(name):
                values, scale = quantise(tensor)
                yield name, values
                yield scale_name(name), scale
            else:
                yield name, tensor

    return entries, tensors()


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
