"""Convert a data set or result file between pickle, parquet and JSON lines: no value changes."""

import argparse
import logging
from pathlib import Path

import entrypoint
from errors import UsageError
from ref_dsinfer.files import write_whole

log = logging.getLogger(__name__)


def convert(source: Path, target: Path, force: bool = False) -> None:
    """Write the frame in `source` to `target`, whose ending says as what; see `data.frames`.

    `force`: replace an existing file, which otherwise is an error. The file appears whole or not
    at all.

    Raises: UsageError for an ending that is none, an existing file, or the source itself;
    InputFileError, EmptyDataError, ColumnsError; OutputError.
    """
    from data import frames
    from data.progress import Progress
    from data.results import check_writable
    from data.samples import ENDINGS, naming, read_frame

    ending = target.suffix.lower()
    if ending not in ENDINGS:
        raise UsageError(f"{target}: expected a name that ends in {', '.join(ENDINGS)}")
    if target.exists() and source.exists() and target.samefile(source):
        raise UsageError(f"{target} is the input itself: choose another name")
    if target.exists() and not force:
        raise UsageError(f"{target} exists: choose another name, or add --force to replace it")
    check_writable(target)
    log.info("reading %s", source)
    frame = read_frame(source)
    with naming(target), Progress(len(frame), unit="row") as progress:
        write_whole(
            target,
            lambda path: frames.write(frame, path, ending, lambda rows: progress.add(units=rows)),
        )
    log.info("wrote %s", target)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", type=Path, metavar="IN", help="a .pkl, .pickle, .parquet or .jsonl file"
    )
    parser.add_argument(
        "target", type=Path, metavar="OUT", help="the file to write, with one of these endings"
    )
    parser.add_argument("--force", action="store_true", help="replace OUT if it exists")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m data.convert", description=__doc__)
    add_options(parser)
    args = parser.parse_args()
    convert(args.source, args.target, args.force)


if __name__ == "__main__":
    entrypoint.run(main)
