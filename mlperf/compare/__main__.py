"""Runs side by side: python -m mlperf.compare DIR DIR…"""

import argparse
from pathlib import Path
from string import ascii_uppercase

import entrypoint
from errors import UsageError

PAGE = Path("compare.html")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folders",
        type=Path,
        nargs="+",
        metavar="DIR",
        help="result folder of a run, such as mlperf_results/offline/performance; the first one is"
        " compared with each of the others",
    )
    output = parser.add_mutually_exclusive_group()
    output.add_argument(
        "--json", action="store_true", help="print all of it as JSON, every sample included"
    )
    output.add_argument("--csv", action="store_true", help="print the figures as CSV")
    parser.add_argument(
        "--page",
        type=Path,
        default=PAGE,
        metavar="FILE",
        help=f"the page with all of it, every sample included (default: {PAGE})",
    )


def run(args: argparse.Namespace) -> None:
    """Compare the runs. Raises: any UserError, such as for a folder without a run."""
    from data.results import check_writable
    from mlperf.compare import page, table
    from mlperf.compare.pair import compare
    from mlperf.compare.runs import read_run

    if not 2 <= len(args.folders) <= len(ascii_uppercase):
        raise UsageError(f"{len(args.folders)} result folders: pass 2 to {len(ascii_uppercase)}")
    check_writable(args.page.parent)
    runs = [
        read_run(name, folder) for name, folder in zip(ascii_uppercase, args.folders, strict=False)
    ]
    pairs = [compare(runs[0], other) for other in runs[1:]]
    page.write(runs, pairs, args.page)
    write = table.as_json if args.json else table.as_csv if args.csv else table.text
    print(write(runs, pairs))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m mlperf.compare",
        description="Compare the runs in result folders: figures, settings, samples, grades.",
    )
    add_options(parser)
    run(parser.parse_args())


if __name__ == "__main__":
    entrypoint.run(main)
