"""A valid submission tree, made by the commands themselves."""

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mlperf.submission import __main__ as command
from tests.mlperf.submission import results

Command = Callable[..., None]


def submission(*words: object) -> None:
    """Run a command of mlperf.submission in this process."""
    parser = argparse.ArgumentParser()
    command.add_options(parser)
    command.run(parser.parse_args([str(word) for word in words]))


@pytest.fixture
def run() -> Command:
    return submission


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An --output-dir with the runs of every mode. Not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    for mode in results.SCENARIOS:
        results.write_results(folder, mode)
    return folder


@pytest.fixture(scope="session")
def _valid(tmp_path_factory: pytest.TempPathFactory, finished: Path) -> Path:
    tree = tmp_path_factory.mktemp("valid") / "tree"
    submission("init", tree, "--org", "Acme", "--system", "box")
    results.fill_in(tree)
    submission("build", tree, "--org", "Acme", "--system", "box", finished)
    return tree


@pytest.fixture
def tree(_valid: Path, tmp_path: Path) -> Path:
    """A valid tree of the closed division, with one system and three scenarios."""
    return Path(shutil.copytree(_valid, tmp_path / "tree"))
