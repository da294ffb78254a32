"""Shared by the tests of real engines."""

import asyncio
from pathlib import Path

import psutil
import pytest

from backends import drive, registry
from backends.types import Backend, EngineConfig, Request
from errors import EngineError
from tests.jobs import assert_soon_empty, orphans

TINY = Path(__file__).parents[2] / "data" / "tiny"
LENGTH = 1024  # tokens of prompt and answer
STOP = frozenset({1})
CONFIG = EngineConfig(
    str(TINY / "model"), device="cpu", dtype="float32", max_model_len=LENGTH, eager=True
)


def load(name: str, config: EngineConfig) -> Backend:
    """An engine, not started."""
    return registry.load(registry.lookup(name), config)


def request(number: int, length: int = 9, limit: int = 12, stop: frozenset[int] = STOP) -> Request:
    """A request whose prompt depends on `number`."""
    return Request(number, (0, *range(20 + number, 19 + number + length)), limit, stop)


def engine_processes() -> list[psutil.Process]:
    """Our running child processes, without those that end with us."""
    return [
        child
        for child in psutil.Process().children(recursive=True)
        if child.status() != psutil.STATUS_ZOMBIE
        and not any(name in str(child.cmdline()) for name in ("resource_tracker", "forkserver"))
    ]


def assert_ended(name: str, before: set[Path]) -> None:
    """Nothing is left of an engine; files that vLLM shares with this process go with it."""
    assert not engine_processes()
    if name != "vllm":
        # its keeper works on, or an engine beside it has not mapped its own yet
        assert_soon_empty(lambda: orphans() - before)


def failed_start(name: str, config: EngineConfig) -> str:
    """The message of a failing start, which must leave nothing behind."""
    before = orphans()

    async def start() -> None:
        async with drive.running(load(name, config)):
            pass

    with pytest.raises(EngineError) as caught:
        asyncio.run(start())
    assert_ended(name, before)
    return str(caught.value)
