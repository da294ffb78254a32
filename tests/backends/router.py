"""SGLang's own router, as users start it."""

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from tests.jobs import free_port

START_S = 60
COMMAND = (sys.executable, "-m", "sglang_router.launch_router")


@contextmanager
def router(servers: Sequence[str], key: str, log: Path) -> Iterator[str]:
    """A router of these servers, which want this key. Yields its URL. Skips the test where it is
    not installed."""
    pytest.importorskip("sglang_router", reason="./setup.sh --backend sglang installs it")
    port = free_port()
    words = ("--worker-urls", *servers, "--host", "127.0.0.1", "--port", str(port))
    with log.open("wb") as written:
        process = subprocess.Popen(
            [*COMMAND, *words, "--api-key", key], stdout=written, stderr=written
        )
    try:
        until = time.monotonic() + START_S
        while not _ready(url := f"http://127.0.0.1:{port}", len(servers)):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.1)
        yield url
    finally:
        process.kill()
        process.wait()


def _ready(url: str, servers: int) -> bool:
    """Whether it has found all its servers."""
    try:
        with urlopen(f"{url}/readiness") as answer:
            return f'"healthy_workers":{servers},'.encode() in answer.read()
    except URLError:  # or its answer that it is not ready
        return False
