"""Progress in bytes: a bar on a terminal, a log line every 30 s elsewhere."""

import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from data.progress import EVERY_S

log = logging.getLogger(__name__)


def bar_class() -> Any:
    """tqdm's class for this process's standard error, as libraries take it."""
    from tqdm import tqdm

    class Bar(tqdm):
        """A bar on a terminal."""

        def __init__(self, *args: Any, **options: Any) -> None:
            options.pop("name", None)  # huggingface_hub's groups of bars
            # tqdm's control characters must not be escaped: see terminal
            super().__init__(*args, **(options | {"file": sys.__stderr__, "dynamic_ncols": True}))

    class Lines(Bar):
        """Lines in the log."""

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **(options | {"mininterval": EVERY_S, "delay": EVERY_S}))

        def display(self, msg: str | None = None, pos: int | None = None) -> bool:
            log.info("%s", msg or self)
            return True

    return Bar if sys.stderr and sys.stderr.isatty() else Lines


@contextmanager
def progress_bar(total: int | None, name: str) -> Iterator[Callable[[int], object]]:
    """A function that is told how many bytes are done, by any thread; `total` in bytes."""
    lock = threading.Lock()
    with bar_class()(total=total, desc=name, unit="B", unit_scale=True) as bar:

        def seen(count: int) -> None:
            with lock:
                bar.update(count)

        yield seen
