import asyncio
import time
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

import entrypoint
from backends.drive import run_all
from backends.echo import EchoEngine
from backends.types import Delta, EngineConfig, Request, Stats
from data import recorder
from data.recorder import Recorder
from data.timeline import Timeline, read_timeline
from errors import EngineError, OutputError


def engine(coalesce: bool = False, **options: int) -> EchoEngine:
    texts = {key: str(value) for key, value in options.items()}
    return EchoEngine(EngineConfig("nowhere", options=texts, coalesce=coalesce))


def request(row: int, length: int = 5) -> Request:
    return Request(row + 100, tuple(range(10, 10 + length)), 100, frozenset({1}), row=row)


async def answer(backend: EchoEngine, path: Path, requests: list[Request]) -> None:
    async with Recorder(path, backend, "server", "performance", "echo") as running:
        for one in requests:
            running.arrive(one, time.monotonic_ns())
        await run_all(backend, requests, running.finish, running.start, running.watch)


def recorded(backend: EchoEngine, path: Path, requests: list[Request]) -> Timeline:
    asyncio.run(answer(backend, path, requests))
    return read_timeline(path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "timeline.parquet"


def test_every_request_and_second_has_a_row(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "EVERY_S", 0.05)
    backend = engine(first_token_ms=40, token_ms=10, slots=2)
    timeline = recorded(backend, path, [request(row, 3 + row) for row in range(4)])
    rows = timeline.requests.set_index("sample_index").sort_index()
    assert list(rows["request_id"]) == [100, 101, 102, 103]
    assert list(rows["prompt_tokens"]) == list(rows["answer_tokens"]) == [3, 4, 5, 6]
    assert list(rows["finish"]) == ["stop"] * 4
    assert rows["endpoint"].isna().all()
    assert (rows["first_token_s"] - rows["arrival_s"] >= 0.04).all()
    assert (rows["finish_s"] - rows["first_token_s"] >= 0.02).all()
    seconds = timeline.seconds
    assert len(seconds) >= 3  # two pairs of 60 ms and more
    assert seconds["tokens"].sum() == 3 + 4 + 5 + 6
    assert seconds["running"].max() == seconds["waiting"].max() == 2
    assert seconds[["cache_use", "preemptions"]].isna().all(axis=None)


def test_whole_answers_have_no_time_of_a_first_token(path: Path) -> None:
    rows = recorded(engine(coalesce=True), path, [request(0), request(1)]).requests
    assert rows["first_token_s"].isna().all()
    assert rows["finish_s"].notna().all()


def test_what_a_failure_cuts_off_has_no_end(path: Path) -> None:
    with pytest.raises(EngineError, match="request 3"):
        asyncio.run(answer(engine(fail_at=3, hang_at=1), path, [request(row) for row in range(3)]))
    rows = read_timeline(path).requests
    assert len(rows) == 3
    ended = rows["finish_s"].notna()
    assert (rows[["answer_tokens", "finish"]].notna().all(axis=1) == ended).all()
    assert not ended[rows["sample_index"] == 0].any()


def test_it_is_written_where_the_process_ends_at_once(path: Path) -> None:
    async def run() -> None:
        async with Recorder(path, engine(), None, "eval", "echo") as running:
            running.arrive(request(0), time.monotonic_ns())
            entrypoint.before_failing[-1]("the reason")
            assert read_timeline(path).requests["finish_s"].isna().all()

    before = [*entrypoint.before_failing]
    asyncio.run(run())
    assert entrypoint.before_failing == before


class Serving(EchoEngine):
    """Tells its endpoint, and what it is doing: once at once, then never."""

    asked = 0

    def endpoint(self, request: Request) -> str:
        return f"http://{request.id}"

    async def stats(self) -> Stats:
        self.asked += 1
        if self.asked > 1:
            await asyncio.Event().wait()
        return Stats(running=1, cache_use=0.5, preemptions=7)

    async def stream(self, request: Request) -> AsyncGenerator[Delta, None]:
        await asyncio.sleep(0.15)
        async for delta in super().stream(request):
            yield delta


def test_stats_that_do_not_come_are_not_known(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "EVERY_S", 0.05)
    timeline = recorded(Serving(EngineConfig("nowhere")), path, [request(0)])
    assert list(timeline.requests["endpoint"]) == ["http://100"]
    first, second = timeline.seconds.to_dict("records")[:2]
    assert (first["running"], first["cache_use"]) == (1, 0.5)
    assert first["preemptions"] == 0  # since the run's start
    assert second["running"] != second["running"]
    assert second["preemptions"] != second["preemptions"]


def test_a_timeline_that_can_t_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"none/timeline\.parquet"):
        asyncio.run(answer(engine(), tmp_path / "none" / "timeline.parquet", [request(0)]))
