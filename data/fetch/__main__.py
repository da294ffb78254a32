"""Fetch what the benchmark needs, or verify it: python -m data.fetch --help"""

from entrypoint import run


def main() -> None:
    """Parse the command line and fetch."""
    from data.fetch.command import main

    main()


if __name__ == "__main__":
    run(main)
