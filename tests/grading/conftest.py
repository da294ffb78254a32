"""Shared by the tests of grading."""

from collections.abc import Iterator

import pytest

from grading.sandbox.sandbox import Sandbox


@pytest.fixture(scope="session")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as started:
        yield started
