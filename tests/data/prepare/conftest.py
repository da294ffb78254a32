"""Sources with their true schemas and numbers of rows, and prompts whose examples they have."""

from pathlib import Path

import pytest

from tests.data.prepare import source_files


@pytest.fixture(scope="session", params=source_files.FORMATS)
def every_format(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources in each format."""
    ending: str = request.param
    return source_files.write_all(tmp_path_factory.mktemp("sources"), ending)


@pytest.fixture(scope="session")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources as they lie in their repositories."""
    return source_files.write_all(tmp_path_factory.mktemp("repositories"))


@pytest.fixture
def examples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look for the examples that these sources have."""
    source_files.expect_their_examples(monkeypatch)
