import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from backends import drive
from backends.echo import EchoEngine
from backends.types import Completion, Delta, EngineConfig, Request
from ref_dsinfer.errors import EngineError


def engine(**options: object) -> EchoEngine:
    return EchoEngine(
        EngineConfig("nowhere", options={key: str(value) for key, value in options.items()})
    )


def request(id_: int, length: int = 5) -> Request:
    return Request(id_, tuple(range(10, 10 + length)), 100, frozenset({1}))


def test_collect_joins_the_deltas_and_tells_of_the_first() -> None:
    firsts: list[Delta] = []
    completion = asyncio.run(drive.collect(engine(token_ms=1), request(7), firsts.append))
    assert completion.request_id == 7
    assert completion.token_ids == (10, 11, 12, 13, 14)
    assert completion.finish == "stop"
    assert [delta.token_ids for delta in firsts] == [(10,)]
    assert completion.first_ns == firsts[0].at_ns
    assert completion.last_ns - completion.first_ns >= 4 * 1_000_000


def test_an_empty_answer_is_an_answer() -> None:
    completion = asyncio.run(drive.collect(engine(empty_every=1), request(0)))
    assert completion.token_ids == ()
    assert completion.finish == "stop"


class CutShort(EchoEngine):
    async def stream(self, request: Request) -> AsyncIterator[Delta]:
        yield Delta((5,), None, time.monotonic_ns())


def test_a_stream_that_ends_early_is_a_failure() -> None:
    with pytest.raises(EngineError, match="request 3"):
        asyncio.run(drive.collect(CutShort(EngineConfig("nowhere")), request(3)))


def test_all_requests_are_in_flight_at_once_and_come_back_in_order() -> None:
    done: list[Completion] = []
    start = time.monotonic()
    found = asyncio.run(
        drive.run_all(
            engine(token_ms=20), [request(id_, 9 - id_ % 7) for id_ in range(50)], done.append
        )
    )
    assert time.monotonic() - start < 50 * 3 * 0.02  # one after another: three times this at least
    assert [completion.request_id for completion in found] == list(range(50))
    assert sorted(done, key=lambda completion: completion.request_id) == found
    assert done != found  # told as they end, not at the end


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
    assert "not closed" in caplog.text
