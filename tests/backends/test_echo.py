import asyncio
import time

import pytest

from backends.echo import EchoEngine
from backends.types import Delta, EngineConfig, Request
from errors import EngineError, UsageError

EOS = 1


def engine(coalesce: bool = False, **options: object) -> EchoEngine:
    texts = {key: str(value) for key, value in options.items()}
    return EchoEngine(EngineConfig("nowhere", coalesce=coalesce, options=texts))


def answers(backend: EchoEngine, *prompts: tuple[int, ...], limit: int = 100) -> list[list[Delta]]:
    async def run() -> list[list[Delta]]:
        await backend.start()
        requests = [Request(i, ids, limit, frozenset({EOS})) for i, ids in enumerate(prompts)]
        return [[delta async for delta in backend.stream(request)] for request in requests]

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("options", "lengths"),
    [({}, [1, 4]), ({"coalesce": True}, [5]), ({"token_ms": 0.1}, [1, 1, 1, 1, 1])],
)
def test_deltas_come_streamed_or_coalesced(options: dict, lengths: list[int]) -> None:
    (deltas,) = answers(engine(**options), (5, 6, 7, 8, 9))
    assert [len(delta.token_ids) for delta in deltas] == lengths
    assert sum((delta.token_ids for delta in deltas), ()) == (5, 6, 7, 8, 9)
    assert [delta.finish for delta in deltas] == [None] * (len(lengths) - 1) + ["stop"]
    assert [delta.at_ns for delta in deltas] == sorted(delta.at_ns for delta in deltas)


@pytest.mark.parametrize("coalesce", [True, False])
def test_an_answer_takes_the_time_of_its_tokens(coalesce: bool) -> None:
    start_ns = time.monotonic_ns()
    (deltas,) = answers(engine(coalesce, first_token_ms=20, token_ms=10), (5, 6, 7, 8, 9))
    assert deltas[-1].at_ns - start_ns >= 60e6


@pytest.mark.parametrize(
    ("prompt", "limit", "expected", "finish"),
    [
        ((5, 6, 7), 2, (5, 6), "length"),
        ((5, EOS, 7), 9, (5,), "stop"),  # a stop id never comes out
        ((EOS, 7), 9, (), "stop"),
    ],
)
def test_an_answer_ends_at_its_limit_or_a_stop_id(
    prompt: tuple[int, ...], limit: int, expected: tuple[int, ...], finish: str
) -> None:
    (deltas,) = answers(engine(coalesce=True), prompt, limit=limit)
    assert deltas[-1].token_ids == expected
    assert deltas[-1].finish == finish


def test_options_shorten_and_empty_answers() -> None:
    streams = answers(engine(coalesce=True, answer_tokens=2, empty_every=2), *[(5, 6, 7)] * 4)
    assert [deltas[0].token_ids for deltas in streams] == [(5, 6), (), (5, 6), ()]


def test_it_fails_at_the_configured_request() -> None:
    with pytest.raises(EngineError, match="start"):
        answers(engine(fail_start=1), (5,))
    with pytest.raises(EngineError, match="request 2"):
        answers(engine(fail_at=2), (5,), (6,))


@pytest.mark.parametrize(("key", "value"), [("speed", "9"), ("token_ms", "fast")])
def test_bad_options_are_named(key: str, value: str) -> None:
    with pytest.raises(UsageError, match=key):
        engine(False, **{key: value})


@pytest.mark.parametrize(("slots", "waits"), [(1, True), (2, False)])
def test_requests_wait_for_a_slot(slots: int, waits: bool) -> None:
    async def run() -> tuple[list[Delta], list[Delta]]:
        backend = engine(slots=slots, token_ms=1, load_ms=1)

        async def answer(id_: int) -> list[Delta]:
            request = Request(id_, (5, 6, 7), 9, frozenset({EOS}))
            return [delta async for delta in backend.stream(request)]

        return await asyncio.gather(answer(1), answer(2))

    first, second = asyncio.run(run())
    assert (second[0].at_ns >= first[-1].at_ns) == waits
