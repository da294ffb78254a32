#!/usr/bin/env python3
"""Answer a data set with an engine and save the answers, without LoadGen."""

import entrypoint


def main() -> None:
    # imported here, so that an interrupt prints one line
    import argparse

    from data import inference

    parser = argparse.ArgumentParser(description=__doc__)
    inference.add_options(parser)
    inference.run(parser.parse_args())


if __name__ == "__main__":
    entrypoint.run(main)
