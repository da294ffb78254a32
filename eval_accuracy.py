#!/usr/bin/env python3
"""Grade answers: print exact_match and tokens_per_sample, and write the graded rows."""

import argparse
import os
from pathlib import Path

from data.tasks.livecodebench import TIME_LIMIT_S
from ref_dsinfer import errors


def main() -> None:
    """Parse the command line, grade, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--input-file",
        type=Path,
        required=True,
        help="answers: .pkl, .parquet, .jsonl, or LoadGen's mlperf_log_accuracy.json",
    )
    parser.add_argument(
        "--dataset-file", type=Path, help="data set of the run; needed with LoadGen's log"
    )
    parser.add_argument(
        "--model",
        default=os.environ.get("MLPERF_MODEL"),
        help="model directory; its tokenizer is needed with LoadGen's log (default: $MLPERF_MODEL)",
    )
    parser.add_argument(
        "--livecodebench-file",
        type=Path,
        help="LiveCodeBench's problems with their tests (default: livecodebench.jsonl beside the"
        " data set or the input file, then in data/)",
    )
    parser.add_argument(
        "--output-file", type=Path, help="default: <input>_evaluated.pkl beside the input file"
    )
    parser.add_argument(
        "--time-limit",
        type=float,
        default=TIME_LIMIT_S,
        metavar="SECONDS",
        help="for a LiveCodeBench program to load, and for each test (default: 60, the official)",
    )
    args = parser.parse_args()
    from mlperf.evaluate import evaluate_file

    evaluate_file(
        args.input_file,
        args.dataset_file,
        args.model,
        args.livecodebench_file,
        args.output_file,
        args.time_limit,
    )


if __name__ == "__main__":
    errors.run(main)
