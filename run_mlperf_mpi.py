#!/usr/bin/env python3
"""Measure an engine that torchrun starts, one process per rank, with MLPerf LoadGen:

torchrun --nproc_per_node=8 run_mlperf_mpi.py --mode offline
"""

import entrypoint


def main() -> None:
    # imported here, so that an interrupt prints one line
    import argparse

    from mlperf import run

    parser = argparse.ArgumentParser(description=__doc__)
    run.add_options(parser, torchrun=True)
    run.run(parser.parse_args(), torchrun=True)


if __name__ == "__main__":
    entrypoint.run(main)
