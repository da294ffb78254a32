"""What the live views say; tests/test_live_view.py looks at them in a terminal."""

import asyncio
import io
import time
from array import array
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console, RenderableType

from backends.drive import run_all
from backends.echo import EchoEngine
from backends.types import EngineConfig, Request, Stats
from data.live import Limits, RunView, percentile, speed
from data.recorder import Recorder, Second


def text(content: RenderableType, width: int = 100) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width, highlight=False, markup=False, emoji=False).print(content)
    return stream.getvalue()


def finished(path: Path, **options: int) -> Recorder:
    """The recorder of ten requests, which are answered."""
    texts = {key: str(value) for key, value in options.items()}
    backend = EchoEngine(EngineConfig("nowhere", options=texts))
    recorder = Recorder(path / "timeline.parquet", backend, "server", "performance", "echo")
    requests = [Request(row, (5, 6, 7), 9, frozenset({1}), row=row) for row in range(10)]

    async def run() -> None:
        async with recorder:
            for one in requests:
                recorder.arrive(one, time.monotonic_ns())
            await run_all(backend, requests, recorder.finish, recorder.start, recorder.watch)

    asyncio.run(run())
    return recorder


def test_before_the_engine_has_started_there_is_a_clock_and_what_is_wrong() -> None:
    view = RunView(True, "server, vllm", reasons=["20 rows\n\x1b[2J", "other data"])
    assert not view.shown  # standard error is no terminal here
    shown = text(view.content())
    assert "server, vllm: starting the engine, 0:00:00" in shown
    assert r"not submittable  20 rows\n\x1b[2J (and 1 more)" in shown


def test_it_shows_what_is_done_and_how_fast(tmp_path: Path) -> None:
    recorder = finished(tmp_path, first_token_ms=20, token_ms=1)
    recorder.stats = Stats(512, 21, 0.625, 3)
    view = RunView(False, "server, echo", Limits(2000, 0.5))
    view.follow(recorder, 40)
    shown = text(view.content())
    assert "server, echo: ending, 0:00:0" in shown
    assert "10 of 40" in shown
    assert "30 tokens" in shown
    assert all(word in shown for word in ("0 open", "512 running", "21 waiting"))
    assert all(word in shown for word in ("62% in use", "3 preemptions"))
    ttft, tpot = (next(line for line in shown.splitlines() if name in line)
                  for name in ("TTFT", "TPOT"))  # fmt: skip
    assert "limit 2,000 ms " in ttft
    assert "INVALID" not in ttft
    assert "limit 0.5 ms: INVALID unless it falls" in tpot


def test_what_the_engine_does_not_tell_is_not_shown(tmp_path: Path) -> None:
    recorder = finished(tmp_path)
    recorder.stats = Stats()
    view = RunView(False, "offline, echo")
    view.follow(recorder, 10)
    shown = text(view.content())
    assert "0 open" in shown
    for word in ("running  ", "waiting", "KV cache", "TTFT", "None", "nan"):
        assert word not in shown


@pytest.mark.parametrize("width", [20, 60, 200])
def test_it_fits_any_terminal(tmp_path: Path, width: int) -> None:
    view = RunView(False, "a long title " * 9, Limits(1, 1), ["a long reason " * 30])
    view.follow(finished(tmp_path), 10)
    lines = text(view.content(), width).splitlines()
    assert len(lines) <= 9
    assert all(len(line) <= width for line in lines)


def test_the_present_speed_is_that_of_the_last_ten_seconds() -> None:
    second = 1_000_000_000
    seconds = [Second(n * second, (n + 1) * second, 7 * n, Stats()) for n in range(20)]
    assert speed(seconds) == sum(7 * n for n in range(10, 20)) / 10
    assert speed([]) == 0


@given(st.lists(st.integers(0, 1 << 40), min_size=1), st.sampled_from([0.5, 0.99]))
def test_a_percentile_is_a_value_that_so_many_are_below(values: list[int], share: float) -> None:
    result = percentile(array("q", values), share)
    assert result in values
    assert sum(value < result for value in values) <= share * len(values)
    assert sum(value <= result for value in values) > share * len(values)
