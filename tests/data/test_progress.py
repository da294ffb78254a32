import logging

import pytest

from data.progress import Progress


def test_it_prints_progress_and_remaining_time() -> None:
    with Progress(4) as progress:
        progress.add(100)
        progress.add(300)
        line = progress.line(progress._start + 8)
        assert line == "2 of 4 samples, 50 tokens/s, 0:00:08 elapsed, 0:00:08 left"
        line = progress.line(progress._start + 7200)
        assert line.endswith("2:00:00 elapsed, 2:00:00 left")


def test_no_progress_and_more_than_the_total_are_printed_too() -> None:
    progress = Progress(1)
    assert progress.line(progress._start + 5).endswith("0:00:05 elapsed, ? left")
    progress.add(1)
    progress.add(1)
    assert progress.line(progress._start + 5).startswith("2 of 2 samples")


def test_lines_come_now_and_then_and_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with Progress(3, every_s=3600) as progress:
        for _ in range(3):
            progress.add(1)
    assert len(caplog.messages) == 1
    with Progress(3, every_s=0) as progress:
        for _ in range(3):
            progress.add(1)
    assert len(caplog.messages) == 1 + 4
