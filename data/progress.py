"""How far a run has come: a bar on a terminal, a line now and then elsewhere."""

import logging
import sys
import time
from types import TracebackType
from typing import Self

log = logging.getLogger(__name__)

EVERY_S = 30.0  # between two lines where there is no terminal


class Progress:
    """Counts finished answers; tokens are those of finished answers only."""

    def __init__(self, total: int, every_s: float = EVERY_S) -> None:
        self.done = 0
        self.tokens = 0
        self._total = total
        self._every_s = every_s
        self._start = self._last = time.monotonic()
        self._bar = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, unit="sample", dynamic_ncols=True)

    def add(self, tokens: int) -> None:
        """One more answer, of `tokens` tokens, is there."""
        self.done += 1
        self.tokens += tokens
        now = time.monotonic()
        if self._bar is not None:
            self._bar.set_postfix_str(f"{self._rate(now):.0f} tokens/s", refresh=False)
            self._bar.update()
        elif now - self._last >= self._every_s:
            self._last = now
            log.info("%s", self.line(now))

    def line(self, now: float) -> str:
        """The state at monotonic time `now`, in words."""
        spent = now - self._start
        # more samples than foreseen may come: LoadGen draws a server's schedule at random
        left = spent / self.done * max(self._total - self.done, 0) if self.done else float("nan")
        return (
            f"{self.done} of {max(self._total, self.done)} samples, {self._rate(now):.0f} tokens/s,"
            f" {_clock(spent)} gone, {_clock(left)} left"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        log.info("%s", self.line(time.monotonic()))

    def _rate(self, now: float) -> float:
        return self.tokens / max(now - self._start, 1e-9)


def _clock(seconds: float) -> str:
    if seconds != seconds:
        return "?"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}"
