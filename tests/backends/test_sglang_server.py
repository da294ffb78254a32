"""The dialect of SGLang's server, and its failures."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.dialect import Get, Served
from backends.sglang_server import SglangDialect
from backends.types import Request, Sampling
from errors import EngineError

STOP = 9
REQUEST = Request(7, (0, 5, 6), 20, frozenset({STOP}))


def event(ids: object, count: int, reason: dict | None = None, **more: object) -> bytes:
    meta = {"id": "a1", "completion_tokens": count, "finish_reason": reason, "cached_tokens": 0}
    return json.dumps({"output_ids": ids, "meta_info": meta, **more}).encode()


def stop(matched: object = STOP) -> dict:
    return {"type": "stop", "matched": matched}


def length(count: int = 20) -> dict:
    return {"type": "length", "length": count}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 100}))
    return tmp_path


def read_all(events: list[bytes], request: Request = REQUEST) -> tuple[list[int], str | None]:
    read = SglangDialect("nowhere").reader(request)
    ids: list[int] = []
    finish = None
    for one in events:
        assert finish is None
        part = read(one)
        ids += part.token_ids
        finish = part.finish
    return ids, finish


@given(st.lists(st.lists(st.integers(10, 90), max_size=5), min_size=1, max_size=8), st.booleans())
def test_new_ids_and_whole_answers_are_read_alike(parts: list[list[int]], whole: bool) -> None:
    """Events may hold no id, and the last one the finish alone."""
    answer = [id_ for part in parts for id_ in part] + [STOP]
    cut = [*parts[:-1], [*parts[-1], STOP]]
    events = []
    count = 0
    for number, part in enumerate(cut, 1):
        count += len(part)
        reason = stop() if number == len(cut) else None
        events.append(event(answer[:count] if whole else part, count, reason))
    assert read_all(events, Request(7, (0,), 100, frozenset({STOP}))) == (answer, "stop")


def test_a_whole_answer_may_be_ahead_of_its_count() -> None:
    events = [event([3, 4], 1), event([3, 4, 5], 3), event([3, 4, 5, STOP], 4, stop())]
    assert read_all(events) == ([3, 4, 5, STOP], "stop")


def test_an_answer_at_its_limit() -> None:
    ids = list(range(10, 30))
    assert read_all([event(ids[:8], 8), event(ids[8:], 20, length())]) == (ids, "length")


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ([event([3], 1), event([4], 3)], "of 3 tokens it sent 1 and then 1 ids"),
        ([event([3], 2)], "of 2 tokens it sent 0 and then 1 ids"),
        ([event([3, STOP], 1, stop())], "2 ids, but a count of 1"),
        ([event([3, 1], 2, stop(1))], "stopped at 1, which is no stop id"),
        ([event([3, STOP], 2, stop("NaN happened"))], "stopped at 'NaN happened'"),
        (
            [event([], 0, {"type": "abort", "message": "no\nroom"})],
            "with finish reason 'abort': no room",
        ),
        ([event([], 0, {"type": "abort"})], "with finish reason 'abort'$"),
        ([event(None, 0)], "no output_ids"),
        ([b'{"text": "abc"}'], "no output_ids"),
        ([b'{"error": {"message": "too\\nlong", "code": 400}}'], "too long"),
        ([b'{"error": "odd"}'], "odd"),
        ([b'{"output_ids": ["a"], "meta_info": {"completion_tokens": 1}}'], "int"),
        ([b'{"output_ids": [1'], "truncated"),
        ([b"[]"], "object"),
        ([b""], "truncated"),
    ],
)
def test_what_is_no_answer_is_refused(events: list[bytes], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_all(events)


@given(st.binary(max_size=80))
def test_whatever_comes_is_read_or_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        read_all([data])


@pytest.mark.parametrize("whole", [False, True])
def test_a_request_has_all_that_determines_the_answer(model: Path, whole: bool) -> None:
    request = Request(7, (0, 5), 20, frozenset({9, 1}), Sampling(0.6, 0.95))
    body = json.loads(SglangDialect(str(model)).body(request, "m", whole))
    assert (body["input_ids"], body["stream"]) == ([0, 5], not whole)
    sampling = body["sampling_params"]
    assert (sampling["max_new_tokens"], sampling["stop_token_ids"], sampling["ignore_eos"]) == (
        20,
        [1, 9],
        False,
    )
    assert (sampling["temperature"], sampling["top_p"], sampling["top_k"], sampling["min_p"]) == (
        0.6,
        0.95,
        -1,
        0,
    )
    assert sampling["repetition_penalty"] == 1


def test_where_nothing_stops_an_answer_its_limit_does(model: Path) -> None:
    body = json.loads(SglangDialect(str(model)).body(Request(7, (5,), 3, frozenset()), "m", False))
    assert body["sampling_params"]["ignore_eos"] is True


@pytest.mark.parametrize("id_", [100, 1 << 40, -1])
def test_an_id_beyond_the_vocabulary_is_not_sent(model: Path, id_: int) -> None:
    request = Request(7, (0, id_, 5), 20, frozenset())
    with pytest.raises(ValueError, match=f"holds id {id_}; the model has 100"):
        SglangDialect(str(model)).body(request, "m", False)


@pytest.mark.parametrize("text", [None, "{", "[]", "{}", '{"vocab_size": "many"}'])
def test_a_vocabulary_that_is_not_known_refuses_nothing(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    assert SglangDialect(str(tmp_path)).body(Request(7, (1 << 30,), 2, frozenset()), "m", True)


def answering(answers: dict[str, Any]) -> Get:
    async def get(path: str) -> bytes:
        if path not in answers:
            raise EngineError(f"{path}: HTTP 404")
        return json.dumps(answers[path]).encode()

    return get


def described(answers: dict[str, Any]) -> list[Served]:
    return asyncio.run(SglangDialect("nowhere").describe(answering(answers)))


@pytest.mark.parametrize(
    ("answers", "served"),
    [
        (
            {
                "/server_info": {
                    "model_path": "/models/r1",
                    "served_model_name": "r1",
                    "max_req_input_len": 4096,
                    "context_length": 4102,
                    "version": "0.5.23",
                }
            },
            Served("r1", "/models/r1", 4096, "0.5.23"),
        ),
        (
            {
                "/get_model_info": {"model_path": "/models/r1", "is_generation": True},
                "/readiness": {"status": "ready", "healthy_workers": 2, "total_workers": 3},
            },
            Served("/models/r1", "/models/r1", None, "SGLang's router, servers: 3", 3),
        ),
    ],
)
def test_a_server_and_a_router_tell_of_themselves(answers: dict, served: Served) -> None:
    assert described(answers) == [served]


@pytest.mark.parametrize("odd", [{}, [], {"model_path": 3}])
def test_an_odd_tale_is_refused(odd: object) -> None:
    with pytest.raises(ValueError, match=r".+"):
        described({"/server_info": odd})


def test_a_server_without_model_information_is_refused() -> None:
    with pytest.raises(EngineError, match="404"):
        described({})


def test_a_router_is_healthy_if_all_its_servers_are() -> None:
    router = Served("m", "m", None, "unknown", 3)

    def check(healthy: int) -> None:
        ready = {"status": "ready", "healthy_workers": healthy, "total_workers": 4}
        get = answering({"/readiness": ready})
        asyncio.run(SglangDialect("nowhere").check(get, router))

    check(3)
    check(4)  # one has come since the start
    with pytest.raises(ValueError, match="only 2 of 3 servers behind the router"):
        check(2)
