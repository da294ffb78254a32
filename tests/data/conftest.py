"""What tests of grading share."""

import pytest

from data.sandbox import Sandbox


@pytest.fixture(scope="session")
def sandbox():
    with Sandbox() as started:
        yield started
