"""The live view in a terminal: a run in tmux, whose screen is read."""

import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SECONDS = 120  # for a screen to come, on a busy machine

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed"),
]


class Terminal:
    """A tmux session in which one command runs."""

    def __init__(self, folder: Path, command: str) -> None:
        self._tmux = ("tmux", "-f", "/dev/null", "-S", str(folder / "tmux"))
        # the exit code, on a line of its own, and the cursor stay
        shell = f"trap : INT; cd {folder}; {command}; echo; echo code=$?; sleep 600"
        self._call("new-session", "-d", "-x", "100", "-y", "50", "sh", "-c", shell)

    def screen(self) -> str:
        return self._call("capture-pane", "-p")

    def wait(self, *words: str) -> str:
        """The screen once it has all these words."""
        until = time.monotonic() + SECONDS
        while not all(word in (screen := self.screen()) for word in words):
            assert time.monotonic() < until, screen
            time.sleep(0.1)
        return screen

    def press(self, key: str) -> None:
        self._call("send-keys", key)

    @property
    def cursor(self) -> bool:
        """Whether the cursor is to be seen."""
        return self._call("display-message", "-p", "#{cursor_flag}").strip() == "1"

    def close(self) -> None:
        self._call("kill-server")

    def _call(self, *words: str) -> str:
        ended = subprocess.run(
            [*self._tmux, *words], capture_output=True, text=True, check=True, timeout=60
        )
        return ended.stdout


@pytest.fixture
def terminal(
    tmp_path: Path, echo_model: Path, data_set: Callable[[int], Path]
) -> Iterator[Callable[..., Terminal]]:
    opened = []

    def run(*options: object) -> Terminal:
        words = [sys.executable, ROOT / "run_mlperf.py", "--backend", "echo"]
        words += ["--model", echo_model, "--input-file", data_set(20), *options]
        opened.append(Terminal(tmp_path, shlex.join(map(str, words))))
        return opened[-1]

    yield run
    for one in opened:
        one.close()


def test_a_run_shows_how_it_is_and_then_its_grades(terminal: Callable[..., Terminal]) -> None:
    opened = terminal(
        *("--accuracy", "--mode", "server", "--target-qps", 8),
        *("--engine-arg", "first_token_ms=300", "--engine-arg", "token_ms=10"),
    )
    screen = opened.wait("accuracy, echo: running", "samples", "tokens/s", " running", " left")
    assert "not submittable  20 rows, not the benchmark's 4388" in screen
    screen = opened.wait("code=0", "grading, scores so far", "submittable  no")
    assert "echo: running" not in screen  # it was drawn over
    assert screen.count("accuracy, echo: ending") == 1  # and the last one stays
    assert screen.count("20 of 20") == 3  # of the run, of all tasks, and in the log
    assert opened.cursor


def test_an_interrupt_leaves_the_terminal_as_it_was(terminal: Callable[..., Terminal]) -> None:
    opened = terminal("--mode", "server", "--target-qps", 20, "--engine-arg", "hang_at=9")
    opened.wait("performance, echo: running", "8 of ")
    assert not opened.cursor
    opened.press("C-c")
    opened.wait("interrupted: what is finished is on disk", "code=")
    assert opened.cursor
