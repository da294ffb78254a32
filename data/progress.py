"""Progress of long work: a bar on a terminal, a log line every 30 s elsewhere."""

import logging
import sys
import time
from typing import Self

log = logging.getLogger(__name__)

EVERY_S = 30.0  # between two lines without a terminal


class Progress:
    """Counts finished units of work, and their tokens if they have any.

    `total`: units expected. `name`: in front of the bar, to tell several of them apart. `bar`:
    whether there may be one.
    """

    def __init__(
        self,
        total: int,
        name: str = "",
        unit: str = "sample",
        every_s: float = EVERY_S,
        bar: bool = True,
    ) -> None:
        self.done = 0
        self.tokens = 0
        self._total = total
        self._name = name
        self._unit = unit
        self._every_s = every_s
        self._start = self._last = time.monotonic()
        self._bar = None
        if bar and sys.stderr and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=total,
                desc=name or None,
                unit=unit,
                dynamic_ncols=True,
                file=sys.__stderr__,  # tqdm's control characters must not be escaped: see terminal
            )

    def add(self, tokens: int = 0, units: int = 1) -> None:
        """Count more units, one by default, with `tokens` tokens."""
        self.done += units
        self.tokens += tokens
        now = time.monotonic()
        if self._bar is not None:
            if self.tokens:
                self._bar.set_postfix_str(self._rate(now), refresh=False)
            self._bar.update(units)
        elif now - self._last >= self._every_s:
            self._last = now
            log.info("%s", self.line(now))

    def line(self, now: float) -> str:
        """The log line at monotonic time `now`."""
        elapsed = now - self._start
        return (
            f"{self._name}{': ' if self._name else ''}{self.done} of"
            f" {max(self._total, self.done)} {self._unit}s, {self._rate(now)},"
            f" {clock(elapsed)} elapsed, {clock(seconds_left(self.done, self._total, elapsed))}"
            " left"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()
        log.info("%s", self.line(time.monotonic()))

    def _rate(self, now: float) -> str:
        count, unit = (self.tokens, "token") if self.tokens else (self.done, self._unit)
        return f"{count / max(now - self._start, 1e-9):.0f} {unit}s/s"


def seconds_left(done: int, total: int, elapsed_s: float) -> float:
    """How long the rest takes at the speed so far; NaN if nothing is done."""
    # more than `total` are possible: LoadGen draws the Server schedule at random
    return elapsed_s / done * max(total - done, 0) if done else float("nan")


def clock(seconds: float) -> str:
    """Seconds as hours:minutes:seconds, NaN as a question mark."""
    if seconds != seconds:
        return "?"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}"
