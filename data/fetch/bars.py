"""Progress in bytes: a bar on a terminal, a log line every 30 s elsewhere."""

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from data.progress import EVERY_S

log = logging.getLogger(__name__)


@contextmanager
def progress_bar(
    total: int | None, name: str, every_s: float = EVERY_S
) -> Iterator[Callable[[int], object]]:
    """A function that any thread tells how many bytes more are done; `total` in bytes."""
    from tqdm import tqdm

    lock = threading.Lock()
    terminal = bool(sys.stderr and sys.stderr.isatty())
    begun = last = time.monotonic()
    with tqdm(
        total=total,
        desc=name,
        unit="B",
        unit_scale=True,
        dynamic_ncols=True,
        disable=not terminal,
        file=sys.__stderr__,  # tqdm's control characters must not be escaped: see terminal
    ) as bar:
        done = 0

        def seen(count: int) -> None:
            nonlocal done, last
            with lock:
                done += count
                bar.update(count)
                now = time.monotonic()
                if not terminal and now - last >= every_s:
                    last = now
                    options = {"unit": "B", "unit_scale": True, "ncols": 0, "prefix": name}
                    log.info("%s", tqdm.format_meter(done, total, now - begun, **options))

        yield seen
