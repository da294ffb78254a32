"""What tests of grading share."""

import pytest

from grading.sandbox.sandbox import Sandbox


@pytest.fixture(scope="session")
def sandbox():
    with Sandbox() as started:
        yield started
