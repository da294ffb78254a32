#!/usr/bin/env python3
"""Measure an engine that torchrun starts, one process a rank, with MLPerf LoadGen:

torchrun --nproc_per_node=8 run_mlperf_mpi.py --mode offline
"""

import argparse

from mlperf import run
from ref_dsinfer import errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    run.add_options(parser, torchrun=True)
    run.run(parser.parse_args(), torchrun=True)


if __name__ == "__main__":
    errors.run(main)
