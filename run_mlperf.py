#!/usr/bin/env python3
"""Measure an engine with MLPerf LoadGen, or with --accuracy grade its answers."""

import entrypoint


def main() -> None:
    # imported here, so that an interrupt prints one line
    import argparse

    from mlperf import run

    parser = argparse.ArgumentParser(description=__doc__)
    run.add_options(parser)
    run.run(parser.parse_args())


if __name__ == "__main__":
    entrypoint.run(main)
