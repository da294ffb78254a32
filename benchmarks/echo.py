"""Echo servers in a process of their own, for benchmarks of what talks to servers."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAM = Path(__file__).parents[1] / "tests" / "backends" / "echo_server.py"


@contextmanager
def echo_servers(*servers: str) -> Iterator[list[str]]:
    """URLs of servers that end with the block: one for each LANES:STEP_MS, or else one that is as
    fast as it can be."""
    command = [sys.executable, str(PROGRAM), *servers]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        ports = [int(process.stdout.readline()) for _ in servers or [""]]
        yield [f"http://127.0.0.1:{port}" for port in ports]
        process.stdin.close()
