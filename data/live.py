"""The live view of a run: what is done, how fast, how close to the limits, and what is wrong.

It looks at a `Recorder` once a second, in a thread of its own.
"""

import time
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from data.progress import clock, seconds_left
from data.recorder import Recorder, Second
from data.screen import Line, Screen, bar, framed, table
from terminal import one_line

if TYPE_CHECKING:
    from rich.console import RenderableType

NOW_S = 10.0  # of the present speed


@dataclass(frozen=True)
class Limits:
    """The limits of the 99th percentiles."""

    ttft_ms: float
    tpot_ms: float


class RunView:
    """A screen with the state of a run, where standard error is a terminal and `enabled`."""

    def __init__(
        self, enabled: bool, title: str, limits: Limits | None = None, reasons: Sequence[str] = ()
    ) -> None:
        """`limits`: None where there are none. `reasons`: why the run can't be submitted."""
        self._title = title
        self._limits = limits
        self._reasons = reasons
        self._recorder: Recorder | None = None
        self._total = 0
        self._begin_s = time.monotonic()
        self._screen = Screen(enabled, self.content)

    @property
    def shown(self) -> bool:
        """Whether there is a screen."""
        return self._screen.shown

    def follow(self, recorder: Recorder, total: int) -> None:
        """The engine has started. `total`: how many requests are expected."""
        self._total = total
        self._recorder = recorder

    def __enter__(self) -> Self:
        self._screen.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._screen.__exit__(*error)

    def content(self) -> "RenderableType":
        """What is on the screen."""
        recorder = self._recorder
        if recorder:
            elapsed_s = recorder.elapsed_s
            phase = "ending" if recorder.ended else "running"
            head = f"{self._title}: {phase}, {clock(elapsed_s)}"
        else:
            elapsed_s = time.monotonic() - self._begin_s
            head = f"{self._title}: starting the engine, {clock(elapsed_s)}"
        lines = self._run(recorder, elapsed_s) if recorder else ()
        return framed(head, table(lines, self._notes()))

    def _run(self, recorder: Recorder, elapsed_s: float) -> Iterator[Line]:
        done, total = recorder.done, max(recorder.done, self._total)
        left = clock(seconds_left(done, total, elapsed_s))
        yield "samples", f"{done:,} of {total:,}", f"{left} left", "", bar(done, total)
        now, mean = speed(recorder.seconds), recorder.tokens / elapsed_s
        yield "tokens/s", f"{now:,.0f} now", f"{mean:,.0f} mean", f"{recorder.tokens:,} tokens"
        yield from _engine(recorder)
        if self._limits:
            yield from _latencies(recorder, self._limits)

    def _notes(self) -> Iterator[Line]:
        if self._reasons:
            others = len(self._reasons) - 1
            more = f" (and {others} more)" if others else ""
            yield "not submittable", one_line(self._reasons[0]) + more
        for warning in [*self._screen.warnings]:
            yield "warning", warning


def speed(seconds: Sequence[Second]) -> float:
    """Tokens/s of the last `NOW_S` seconds."""
    recent = seconds[-int(NOW_S) :]
    duration_s = sum(second.end_ns - second.start_ns for second in recent) / 1e9
    return sum(second.tokens for second in recent) / duration_s if recent else 0.0


def percentile(values: array, share: float) -> float:
    """The value that LoadGen takes for this percentile; there must be one."""
    import numpy as np

    copy = np.frombuffer(values[:], values.typecode)  # of a copy: these values still get more
    index = int(len(copy) * share)
    return float(np.partition(copy, index)[index])


def _engine(recorder: Recorder) -> Iterator[Line]:
    stats = recorder.stats
    numbers = ((recorder.open, "open"), (stats.running, "running"), (stats.waiting, "waiting"))
    yield "requests", *(f"{count:,} {name}" for count, name in numbers if count is not None)
    if stats.cache_use is not None:
        times = "" if stats.preemptions is None else f"{stats.preemptions:,} preemptions"
        yield "KV cache", f"{stats.cache_use:.0%} in use", times, "", bar(stats.cache_use, 1)


def _latencies(recorder: Recorder, limits: Limits) -> Iterator[Line]:
    from rich.text import Text

    for name, values, limit_ms in (
        ("TTFT", recorder.ttft_ns, limits.ttft_ms),
        ("TPOT", recorder.tpot_ns, limits.tpot_ms),
    ):
        if not values:
            continue
        p50, p99 = (percentile(values, share) / 1e6 for share in (0.5, 0.99))
        fault, style = (": INVALID unless it falls", "red") if p99 > limit_ms else ("", "")
        limit = Text(f"limit {limit_ms:,g} ms{fault}", style)
        yield name, f"p50 {p50:,.1f} ms", f"p99 {p99:,.1f} ms", limit
