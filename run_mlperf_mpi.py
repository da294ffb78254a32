#!/usr/bin/env python3
"""Measure an engine that torchrun starts, one process a rank, with MLPerf LoadGen:

torchrun --nproc_per_node=8 run_mlperf_mpi.py --mode offline
"""

import entrypoint


def main() -> None:
    # in here, where an interrupt amid them is a line
    import argparse

    from mlperf import run

    parser = argparse.ArgumentParser(description=__doc__)
    run.add_options(parser, torchrun=True)
    run.run(parser.parse_args(), torchrun=True)


if __name__ == "__main__":
    entrypoint.run(main)
