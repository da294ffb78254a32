#!/usr/bin/env python3
"""Grade answers: print exact_match and tokens_per_sample, and write the graded rows."""

import entrypoint


def main() -> None:
    # imported here, so that an interrupt prints one line
    import argparse

    from grading import cli
    from mlperf.report_page.regraded import renew

    parser = argparse.ArgumentParser(description=__doc__)
    cli.add_options(parser)
    cli.run(parser.parse_args(), renew)


if __name__ == "__main__":
    entrypoint.run(main)
