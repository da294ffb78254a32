"""Write the report of a finished, failed or running run again: python -m mlperf.report_page DIR"""

import argparse
from pathlib import Path

import entrypoint


def main() -> None:
    """Write a report for each result folder, and print its path."""
    parser = argparse.ArgumentParser(
        prog="python -m mlperf.report_page", description="Write report.html for runs again."
    )
    parser.add_argument(
        "folders",
        type=Path,
        nargs="+",
        metavar="DIR",
        help="result folder of a run, such as mlperf_results/offline/performance",
    )
    folders = parser.parse_args().folders
    from mlperf.report_page.page import write_report  # not for --help

    for folder in folders:
        print(write_report(folder))


if __name__ == "__main__":
    entrypoint.run(main)
