import asyncio
import time
from array import array
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from backends import drive
from backends.echo import EchoEngine
from backends.types import Completion, Delta, EngineConfig, Finish, Request
from errors import EngineError


def engine(**options: object) -> EchoEngine:
    return EchoEngine(
        EngineConfig("nowhere", options={key: str(value) for key, value in options.items()})
    )


def request(id_: int, length: int = 5) -> Request:
    return Request(id_, tuple(range(10, 10 + length)), 100, frozenset({1}))


def test_collect_joins_the_deltas_and_reports_the_first() -> None:
    firsts: list[tuple[Request, Delta]] = []

    def on_first(*first: Any) -> None:
        firsts.append(first)

    completion = asyncio.run(drive.collect(engine(token_ms=1), request(7), on_first))
    assert completion.request_id == 7
    assert completion.token_ids.tolist() == [10, 11, 12, 13, 14]
    assert completion.finish == "stop"
    ((first_request, delta),) = firsts
    assert (first_request, delta.token_ids) == (request(7), (10,))
    assert completion.first_ns == delta.at_ns
    assert completion.last_ns - completion.first_ns >= 4 * 1_000_000


def test_an_empty_answer_is_an_answer() -> None:
    completion = asyncio.run(drive.collect(engine(empty_every=1), request(0)))
    assert not completion.token_ids
    assert completion.finish == "stop"


class CutShort(EchoEngine):
    async def stream(self, request: Request) -> AsyncGenerator[Delta, None]:
        yield Delta((5,), None, time.monotonic_ns())


def test_a_stream_that_ends_early_is_a_failure() -> None:
    with pytest.raises(EngineError, match="request 3"):
        asyncio.run(drive.collect(CutShort(EngineConfig("nowhere")), request(3)))


class Answers(EchoEngine):
    """Streams the given deltas."""

    def __init__(self, model: Path, deltas: list[Delta]) -> None:
        super().__init__(EngineConfig(str(model)))
        self._deltas = deltas

    async def stream(self, request: Request) -> AsyncGenerator[Delta, None]:
        for delta in self._deltas:
            yield delta


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text('{"vocab_size": 50}')
    return tmp_path


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(
    ("ids", "finish", "message"),
    [
        ([5, 6], "length", "cut the answer after 2 of 4 tokens"),
        ([], "length", "cut the answer after 0 of 4 tokens"),
        ([5] * 5, "length", "returned 5 tokens of 4"),
        ([5] * 4, "stop", "returned 5 tokens of 4"),
        ([5, 50], "stop", "sampled id 50, but the model has ids 0 to 49"),
        ([-1, 5], "stop", "sampled id -1, but"),
        ([5, 3, 6], "stop", "went on after a stop id"),
        ([5, 1, 6, 7], "length", "went on after a stop id"),
        ([5, 49, 6, 7], "length", None),
        ([5, 49, 6], "stop", None),
        ([], "stop", None),
    ],
)
def test_answers_are_checked_against_their_requests(
    model: Path, ids: list[int], finish: Finish, message: str | None, whole: bool
) -> None:
    deltas = [] if whole else [Delta((id_,), None, 1) for id_ in ids]
    deltas.append(Delta(tuple(ids) if whole else (), finish, 2))
    one = Request(123_456_789_012_345, (9,), 4, frozenset({1, 3}), row=7)
    if message is None:
        completion = asyncio.run(drive.collect(Answers(model, deltas), one))
        assert (list(completion.token_ids), completion.finish) == (ids, finish)
        return
    with pytest.raises(EngineError, match=rf"row 7 \(request 123456789012345\): .*{message}"):
        asyncio.run(drive.collect(Answers(model, deltas), one))


def test_an_answer_ends_once(model: Path) -> None:
    end = Delta((5,), "stop", 1)
    for more in (end, Delta((), "stop", 2), Delta((6,), None, 2)):
        with pytest.raises(EngineError, match="went on after the end of the answer"):
            asyncio.run(
                drive.collect(Answers(model, [end, more]), Request(0, (9,), 4, frozenset()))
            )


def test_a_wrong_first_token_is_not_reported_to_loadgen(model: Path) -> None:
    firsts: list[Delta] = []

    def on_first(one: Request, delta: Delta) -> None:
        firsts.append(delta)

    with pytest.raises(EngineError, match="sampled id 4294967296"):
        asyncio.run(
            drive.collect(Answers(model, [Delta((1 << 32,), None, 1)]), request(0), on_first)
        )
    assert not firsts


@pytest.mark.parametrize(
    ("row", "name"),
    [(None, "request 8"), (8, "row 8"), (3, "row 3 (request 8)"), (0, "row 0 (request 8)")],
)
def test_a_request_is_called_by_its_row(row: int | None, name: str) -> None:
    assert Request(8, (1,), 4, frozenset(), row=row).name == name


def _silence(monkeypatch: pytest.MonkeyPatch, warn_s: float) -> None:
    monkeypatch.setattr(drive, "SILENT_S", warn_s)
    monkeypatch.setattr(drive, "CHECK_S", 0.02)


def test_silence_is_warned_of_and_then_ends_the_run(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _silence(monkeypatch, 0.1)
    config = EngineConfig("nowhere", options={"hang_at": "1"}, stall_timeout=0.6)
    requests = [Request(900 + row, (5,), 9, frozenset(), row=row) for row in range(3)]
    with pytest.raises(EngineError, match=r"no token of any of 1 open requests for 1 s; .*row 0 "):
        asyncio.run(drive.run_all(EchoEngine(config), requests))
    warned = [record.getMessage() for record in caplog.records]
    assert 1 <= len(warned) <= 3  # after 0.1, 0.2 and 0.4 s, where nothing keeps it from looking
    assert all("oldest, row 0 (request 900), has been open for" in line for line in warned)
    assert all("--stall-timeout" in line for line in warned)


def test_a_slow_engine_is_not_silent(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _silence(monkeypatch, 0.5)
    config = EngineConfig("nowhere", options={"token_ms": "50"}, stall_timeout=0.7)
    requests = [request(number, 30) for number in range(3)]
    assert len(asyncio.run(drive.run_all(EchoEngine(config), requests))) == 3  # in 1.5 s
    assert not caplog.records


def test_a_wait_for_the_next_request_is_no_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    _silence(monkeypatch, 0.1)

    async def run() -> None:
        watch = drive.Watch(0.3)
        watching = asyncio.create_task(watch.run())
        for number in range(2):
            await drive.collect(engine(), request(number), watch=watch)
            await asyncio.sleep(0.5)
        watch.open(request(3), array("i"))
        await asyncio.sleep(0.15)
        assert not watching.done()
        await drive.cancel([watching])

    asyncio.run(run())


def test_all_requests_are_in_flight_at_once_and_come_back_in_order() -> None:
    done: list[Completion] = []
    completions = asyncio.run(
        drive.run_all(
            engine(token_ms=20), [request(id_, 9 - id_ % 7) for id_ in range(50)], done.append
        )
    )
    assert max(one.first_ns for one in completions) <= min(one.last_ns for one in completions)
    assert [completion.request_id for completion in completions] == list(range(50))
    assert sorted(done, key=lambda completion: completion.request_id) == completions
    assert done != completions  # reported as they end, not at the end


def test_no_requests_are_no_failure() -> None:
    assert asyncio.run(drive.run_all(engine(), [])) == []


def test_the_first_failure_ends_the_rest_and_is_raised() -> None:
    async def run() -> int:
        with pytest.raises(EngineError, match="request 3"):
            await drive.run_all(engine(hang_at=1, fail_at=3), [request(id_) for id_ in range(5)])
        return len(asyncio.all_tasks())

    assert asyncio.run(run()) == 1  # this task only


def test_a_failing_callback_ends_the_run() -> None:
    def on_done(completion: Completion) -> None:
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="disk"):
        asyncio.run(drive.run_all(engine(hang_at=2), [request(0), request(1)], on_done))


class Closing(EchoEngine):
    closed = 0

    async def close(self) -> None:
        self.closed += 1


@pytest.mark.parametrize("options", [{"fail_start": "1"}, {"fail_at": "1"}])
def test_an_engine_is_closed_whatever_happens(options: dict[str, str]) -> None:
    backend = Closing(EngineConfig("nowhere", options=options))

    async def run() -> None:
        async with drive.running(backend):
            await drive.collect(backend, request(0))

    with pytest.raises(EngineError):
        asyncio.run(run())
    assert backend.closed == 1


class NeverCloses(EchoEngine):
    async def close(self) -> None:
        await asyncio.Event().wait()


def test_an_engine_that_does_not_close_does_not_hide_the_failure(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(drive, "CLOSE_S", 0.05)
    backend = NeverCloses(EngineConfig("nowhere", options={"fail_at": "1"}))

    async def run() -> None:
        async with drive.running(backend):
            await drive.collect(backend, request(0))

    with pytest.raises(EngineError, match="request 1"):
        asyncio.run(run())
    assert "did not close" in caplog.text
