"""Build the benchmark's data set from its public sources, or draw a smaller one from it."""

import argparse
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import entrypoint
from backends.options import positive_int
from benchmark import CALIBRATION_ROWS, PROMPT_TOKENS, ROWS
from errors import ColumnsError, InputFileError, UsageError

if TYPE_CHECKING:
    import pandas as pd

    from data.prepare.build import Candidates
    from data.prompts import Prompts

log = logging.getLogger("data.prepare")

MANIFEST, DIFFERENCES = "_manifest.json", "_differences.jsonl"
SHOWN = 5  # differences on the screen


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of data.prepare."""
    parser.add_argument(
        "--output-file",
        type=Path,
        required=True,
        metavar="FILE",
        help=f"written as .pkl and .parquet, next to a manifest (NAME{MANIFEST})",
    )
    group = parser.add_argument_group("what it is built from")
    group.add_argument(
        "--sources",
        type=Path,
        metavar="DIR",
        help="folder with copies of the public data sets (default: the Hugging Face hub)",
    )
    group.add_argument(
        "--model",
        default=os.environ.get("MLPERF_MODEL"),
        metavar="DIR",
        help="directory with R1's tokenizer (default: $MLPERF_MODEL)",
    )
    group.add_argument(
        "--like",
        type=Path,
        metavar="FILE",
        help="an official data set: choose its rows in its order, and name all that differ",
    )
    group.add_argument(
        "--input-file",
        type=Path,
        metavar="FILE",
        help="draw the rows from this data set instead of building it",
    )
    group.add_argument(
        "--problems-file",
        type=Path,
        metavar="FILE",
        help="also make a store of LiveCodeBench's problems with their tests, such as"
        " data/livecodebench.sqlite",
    )
    group = parser.add_argument_group("smaller sets")
    group.add_argument("--subset", type=positive_int, metavar="N", help="draw N rows at random")
    group.add_argument(
        "--stratified",
        action="store_true",
        help="draw each task's and prompt length's share of --subset, so that it represents all",
    )
    group.add_argument(
        "--calibration",
        action="store_true",
        help=f"the calibration set of this project: --subset {CALIBRATION_ROWS} --stratified",
    )
    group.add_argument(
        "--seed", type=int, default=0, metavar="N", help="chooses the subset (default: 0)"
    )


def run(args: argparse.Namespace) -> None:
    """Make the files.

    Raises: any UserError; InputFileError, after all files are written, if rows differ from those of
    --like.
    """
    from data.paths import keep_inputs
    from data.results import check_writable, result_paths

    count = _subset_rows(args)
    outputs = [*result_paths(args.output_file), _beside(args.output_file, MANIFEST)]
    keep_inputs(outputs, [args.input_file, args.like])
    check_writable(outputs[0])
    manifest: dict[str, Any]
    differences: list[dict[str, Any]] = []
    if args.input_file is None:
        frame, manifest, differences = _build(args, outputs)
    else:
        from data.prepare.sources import sha256
        from data.samples import read_frame

        frame = read_frame(args.input_file)
        manifest = {"input_file": args.input_file.name, "sha256": sha256(args.input_file)}
    if count:
        frame, manifest["subset"] = _drawn(frame, count, args)
    _write(frame, args.output_file, manifest)
    path = _beside(args.output_file, DIFFERENCES)
    path.unlink(missing_ok=True)  # an earlier run's
    if differences:
        _write_lines(path, differences)
        for one in differences[:SHOWN]:
            log.warning("%s", one)
        rows = len({one["row"] for one in differences})
        raise InputFileError(f"{rows} rows differ from those of {args.like}: all are in {path}")


def _subset_rows(args: argparse.Namespace) -> int | None:
    """How many rows to draw; None for all. Raises: UsageError for options that contradict."""
    if args.calibration and (args.subset or args.stratified):
        raise UsageError("--calibration is a --subset of its own: pass one of them")
    if args.stratified and not args.subset:
        raise UsageError("--stratified needs --subset N")
    count: int | None = CALIBRATION_ROWS if args.calibration else args.subset
    built_only = ("sources", "like", "problems_file")
    if args.input_file is not None:
        if count is None:
            raise UsageError("--input-file is for drawing rows: add --subset N or --calibration")
        for name in built_only:
            if getattr(args, name) is not None:
                raise UsageError(
                    f"--{name.replace('_', '-')} is for building a data set, and --input-file is"
                    " one: pass one of them"
                )
    elif not args.model:
        raise UsageError("the prompts need R1's tokenizer: add --model, or set MLPERF_MODEL")
    return count


def _build(
    args: argparse.Namespace, outputs: Sequence[Path]
) -> "tuple[pd.DataFrame, dict[str, Any], list[dict[str, Any]]]":
    """The data set, the manifest of how it was made, and how it differs from --like."""
    from data.paths import keep_inputs
    from data.prepare import build, sources
    from data.prompts import Prompts

    prompts = Prompts(args.model)
    files = sources.find(args.sources)
    keep_inputs(outputs, files.values())
    if args.problems_file is not None:
        from data import problems

        keep_inputs([args.problems_file], files.values())
        stored = problems.build([files["livecodebench"]], args.problems_file)
        print(f"{args.problems_file}: {stored} problems")
    candidates = build.candidates(files)
    differences: list[dict[str, Any]] = []
    if args.like is None:
        frame = build.data_set(build.chosen(candidates), prompts)
    else:
        frame, differences = _like(candidates, args.like, prompts)
    hashes = {name: sources.sha256(path) for name, path in files.items()}
    manifest = {
        "sources": build.origin(files, hashes),
        "rules": build.RULES if args.like is None else f"the rows of {args.like.name}",
        "tokenizer": build.tokenizer(Path(args.model)),
    }
    return frame, manifest, differences


def _like(
    candidates: "Candidates", path: Path, prompts: "Prompts"
) -> "tuple[pd.DataFrame, list[dict[str, Any]]]":
    from data.prepare import build, like
    from data.samples import read_frame

    official = read_frame(path)
    try:
        chosen = like.rows_like(candidates, official)
    except ColumnsError as error:
        raise ColumnsError(f"{path}: {error}") from error
    if not chosen:
        raise InputFileError(f"{path}: none of its rows is in the sources")
    frame = build.data_set(list(chosen.values()), prompts)
    return frame, like.differences(frame, list(chosen), official)


def _drawn(
    frame: "pd.DataFrame", count: int, args: argparse.Namespace
) -> "tuple[pd.DataFrame, dict[str, Any]]":
    from data.prepare import subset

    if count > len(frame):
        raise UsageError(f"{count} rows can't be drawn from {len(frame)}: pass a smaller --subset")
    stratified = args.stratified or args.calibration
    try:
        groups = subset.strata(frame, stratified)
    except ColumnsError as error:
        raise ColumnsError(f"{args.input_file}: {error}") from error
    drawn = subset.draw(groups, count, args.seed)
    summary = {
        "stratified": stratified,
        "seed": args.seed,
        **subset.describe(frame, groups, drawn),
    }
    print(subset.in_words(summary))
    rows = sorted(row for part in drawn for row in part)
    return frame.iloc[rows].reset_index(drop=True), summary


def _write(frame: "pd.DataFrame", output: Path, manifest: Mapping[str, Any]) -> None:
    """Write the frame and the manifest, and say what there is now."""
    from data.prepare.build import token_statistics
    from data.prepare.sources import sha256
    from data.results import write_frame
    from ref_dsinfer.files import write_json

    files = write_frame(frame, output)
    tasks = frame["dataset"].value_counts().sort_index()
    content = {
        "rows": len(frame),
        "datasets": {str(name): int(rows) for name, rows in tasks.items()},
        **({"tokens": token_statistics(frame)} if "tok_input_len" in frame.columns else {}),
        **manifest,
        "files": {path.name: sha256(path) for path in files},
    }
    write_json(_beside(output, MANIFEST), content)
    print(f"{' and '.join(map(str, files))}: {len(frame)} rows")
    if tokens := content.get("tokens"):
        whole = f" (official: {PROMPT_TOKENS})" if len(frame) == ROWS else ""
        print(f"prompts: {tokens['mean']} tokens on average{whole}, at most {tokens['longest']}")


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write one JSON object a line. Raises: OutputError."""
    import json

    from ref_dsinfer.files import write_text

    write_text(path, "".join(f"{json.dumps(row)}\n" for row in rows))


def _beside(output: Path, ending: str) -> Path:
    from data.results import result_paths

    return output.with_name(result_paths(output)[0].stem + ending)


def main() -> None:
    """Parse and run the command."""
    parser = argparse.ArgumentParser(prog="python -m data.prepare", description=__doc__)
    add_options(parser)
    run(parser.parse_args())


if __name__ == "__main__":
    entrypoint.run(main)
