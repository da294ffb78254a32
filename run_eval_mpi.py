#!/usr/bin/env python3
"""Answer a data set with an engine that torchrun starts, one process per rank:

torchrun --nproc_per_node=8 run_eval_mpi.py --input-file FILE
"""

import entrypoint


def main() -> None:
    # imported here, so that an interrupt prints one line
    import argparse

    from data import inference

    parser = argparse.ArgumentParser(description=__doc__)
    inference.add_options(parser, torchrun=True)
    inference.run(parser.parse_args(), torchrun=True)


if __name__ == "__main__":
    entrypoint.run(main)
