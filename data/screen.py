"""A part of the terminal that shows how things are, below what is logged meanwhile."""

import argparse
import contextlib
import io
import logging
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Self

import entrypoint
from terminal import harmless, one_line

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

WARNINGS = 3  # that are kept
REFRESHES = 1  # a second
BAR = 30  # characters
Line = Sequence["RenderableType"]  # of a table: a name, and cells


def add_option(parser: argparse.ArgumentParser) -> None:
    """The option that turns it off."""
    parser.add_argument(
        "--no-live",
        action="store_false",
        dest="live",
        help="a line every 30 s instead of a live view, as where standard error is no terminal",
    )


class Screen:
    """Shows `content` while it is open, drawn again every second, and leaves the last one there.

    Where it is not `shown`, it does nothing. Everything that is logged or written to standard error
    meanwhile goes above it.
    """

    def __init__(self, enabled: bool, content: "Callable[[], RenderableType]") -> None:
        """`content` is called in another thread."""
        self.shown = enabled and _is_screen()
        self.warnings: deque[str] = deque(maxlen=WARNINGS)  # the newest, safe to print
        self._content = content
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        if not self.shown:
            return self
        from rich.console import Console
        from rich.live import Live

        # not sys.stderr, which escapes control characters: see terminal
        console = Console(file=sys.__stderr__, highlight=False, markup=False, emoji=False)
        live = Live(
            get_renderable=self._content,
            console=console,
            refresh_per_second=REFRESHES,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        above = _Above(console)
        self._stack.enter_context(live)
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stderr:
                self._stack.callback(handler.setStream, handler.setStream(above))
        self._stack.enter_context(contextlib.redirect_stderr(above))
        self._stack.enter_context(_kept(self.warnings))
        entrypoint.before_failing.append(self._fail)
        return self

    def __exit__(self, *error: object) -> None:
        if self.shown:
            entrypoint.before_failing.remove(self._fail)
            self._stack.close()

    def _fail(self, reason: str) -> None:
        self._stack.close()  # the cursor comes back


def table(lines: Iterable[Line], notes: Iterable[Line] = ()) -> "RenderableType":
    """Content for a screen: lines of a name and cells, then notes, each a name and a text.

    On a narrow screen, bars are shortened first; then texts are cut off.
    """
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    parts = []
    for group, style in ((list(lines), ""), (list(notes), "yellow")):
        grid = Table.grid(padding=(0, 2, 0, 0))
        for number, cells in enumerate(zip_longest(*group, fillvalue="")):
            bars = any(isinstance(cell, ProgressBar) for cell in cells)
            grid.add_column(no_wrap=not bars, style="" if number else "bold")
        for line in group:
            grid.add_row(*line, style=style)
        parts.append(grid)
    return Group(*parts)


def bar(part: float, whole: float) -> "RenderableType":
    """A bar of which `part` of `whole` is filled."""
    from rich.progress_bar import ProgressBar

    return ProgressBar(whole, part, BAR)


def framed(title: str, content: "RenderableType") -> "RenderableType":
    """Content under a title, as all screens have it."""
    from rich.panel import Panel
    from rich.text import Text

    return Panel(content, title=Text(one_line(title)), title_align="left", border_style="dim")


class _Above(io.TextIOBase):
    """Prints whole lines above what a console shows; their control characters are escaped."""

    def __init__(self, console: "Console") -> None:
        self._console = console
        self._rest = ""

    def write(self, text: str, /) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._console.print(harmless(line), soft_wrap=True)
        return len(text)


class _Keeper(logging.Handler):
    """Keeps the newest warnings."""

    def __init__(self, warnings: deque[str]) -> None:
        super().__init__(logging.WARNING)
        self._warnings = warnings

    def emit(self, record: logging.LogRecord) -> None:
        self._warnings.append(one_line(record.getMessage()))


@contextlib.contextmanager
def _kept(warnings: deque[str]) -> Iterator[None]:
    """Log into `warnings` too."""
    keeper = _Keeper(warnings)
    logging.getLogger().addHandler(keeper)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(keeper)


def _is_screen() -> bool:
    """Whether standard error is a terminal on which the cursor can be moved."""
    stream = sys.__stderr__
    return bool(stream and stream.isatty()) and os.environ.get("TERM", "dumb") != "dumb"
