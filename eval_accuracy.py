#!/usr/bin/env python3
"""Grade answers: print exact_match and tokens_per_sample, and write the graded rows."""

import entrypoint


def main() -> None:
    """Parse the command line, grade, report."""
    # in here, where an interrupt amid them is a line
    import argparse

    from mlperf import evaluate_options

    parser = argparse.ArgumentParser(description=__doc__)
    evaluate_options.add_options(parser)
    evaluate_options.run(parser.parse_args())


if __name__ == "__main__":
    entrypoint.run(main)
