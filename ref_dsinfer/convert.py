"""Split a Hugging Face checkpoint into one file a rank, one rank and one tensor at a time.

python -m ref_dsinfer.convert --model-path HF --output-path OUT --model-parallel N
"""

import argparse
import logging
import sys
from pathlib import Path

import entrypoint
from errors import UsageError

log = logging.getLogger(__name__)


def convert(source: Path, target: Path, world_size: int) -> list[Path]:
    """Write a weight file for each of `world_size` ranks, and copy the files beside the weights.

    Each file appears under its name when it is complete. An MTP layer is kept; a run that does not
    draft with it leaves it on disk.
    Raises: ModelError, CheckpointError for the source; ParallelError if the model does not divide;
    OutputError if the target can't be written.
    """
    from tqdm import tqdm

    from ref_dsinfer import checkpoint, parallel, weight_files
    from ref_dsinfer.config import ModelConfig

    if world_size < 1:
        raise UsageError(f"--model-parallel is {world_size}; it must be 1 or more")
    config = ModelConfig.read(source)
    parallel.check(config, world_size)
    sources = weight_files.hugging_face_files(source)
    if not sources:
        raise weight_files.no_weights(source)
    tensors = [piece for file in sources for piece in checkpoint.whole(file)]
    checkpoint.check_kinds(tensors, config)
    written = []
    for rank in range(world_size):
        parts = (
            checkpoint.part_of(piece, config, rank, world_size, world_size) for piece in tensors
        )
        pieces = [part for part in parts if part is not None]
        path = target / weight_files.rank_file(rank, world_size)
        # On a terminal a bar that moves, elsewhere one plain line a rank.
        bar = tqdm(
            checkpoint.read(pieces),
            path.name,
            len(pieces),
            unit="tensor",
            disable=None,
            file=sys.__stderr__,  # it moves the cursor: see terminal
        )
        checkpoint.write(path, pieces, bar)
        log.info("wrote %s (%.2f GiB)", path, path.stat().st_size / 2**30)
        written.append(path)
    checkpoint.copy_side_files(source, target)
    return written


def main() -> None:
    """Parse the command line and convert."""
    parser = argparse.ArgumentParser(
        prog="ref_dsinfer.convert",
        description="Split a Hugging Face checkpoint into one file a rank.",
    )
    parser.add_argument("--model-path", type=Path, required=True, help="Hugging Face directory")
    parser.add_argument("--output-path", type=Path, required=True, help="directory to write")
    parser.add_argument("--model-parallel", type=int, required=True, help="number of ranks")
    args = parser.parse_args()
    convert(args.model_path, args.output_path, args.model_parallel)


if __name__ == "__main__":
    entrypoint.run(main)
