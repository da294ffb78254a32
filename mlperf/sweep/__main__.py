"""Runs over engines and options: python -m mlperf.sweep"""

import argparse
from pathlib import Path
from typing import Any

import entrypoint
from errors import UsageError

OUTPUT_DIR = Path("mlperf_sweep")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="TOML file with engines, options, and the values of those that vary (docs/compare.md);"
        " instead of --engines, --vary and options",
    )
    parser.add_argument(
        "--engines",
        nargs="+",
        default=[],
        metavar="NAME",
        help="backends, each run in the environment that setup.sh has made for it, or else in this"
        " one",
    )
    parser.add_argument(
        "--vary",
        type=_varied,
        action="append",
        default=[],
        metavar="NAME=VALUE,VALUE…",
        help="an option of run_mlperf.py and its values, such as target-qps=2,4,8; may be repeated:"
        " all values are combined. true is a switch, false its absence",
    )
    parser.add_argument(
        "--output-dir",
        type=Path,
        default=OUTPUT_DIR,
        metavar="DIR",
        help="folder of all runs, whose finished ones are not repeated, of sweep.html and"
        f" sweep.json (default: {OUTPUT_DIR})",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the command line of each point, and stop"
    )
    parser.add_argument(
        "options",
        nargs="*",
        metavar="OPTION",
        help="after --: options of run_mlperf.py for all runs, such as -- --num-samples 200",
    )


def run(args: argparse.Namespace) -> None:
    """Measure the points. Raises: any UserError; SweepError, at the end, if a point failed."""
    import shlex

    from mlperf.sweep import plan, series

    names = [name for name, _ in args.vary]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"--vary {twice[0]}: given twice: pass all its values at once")
    table: dict[str, Any] = {
        "engines": {name: {} for name in args.engines},
        "vary": dict(args.vary),
        "options": args.options,
    }
    source = "the command line"
    if args.config:
        if any(table.values()):
            raise UsageError("--config: leave out --engines, --vary and other options beside it")
        table, source = plan.read(args.config), str(args.config)
    points = plan.points(table, source, args.output_dir)
    if args.dry_run:
        for point in points:
            print(shlex.join(point.command))
        return
    series.measure(points, args.output_dir)


def _varied(text: str) -> tuple[str, list[str | bool]]:
    """Parse NAME=VALUE,VALUE… of the command line. Raises: argparse.ArgumentTypeError."""
    name, _, values = text.partition("=")
    if not name or not values:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE,VALUE…")
    switches = {"true": True, "false": False}
    return name.removeprefix("--"), [switches.get(value, value) for value in values.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m mlperf.sweep",
        description="Measure a series of LoadGen runs: engines, and options that vary.",
    )
    add_options(parser)
    run(parser.parse_args())


if __name__ == "__main__":
    entrypoint.run(main)
