"""Which server gets a request."""

import asyncio

import pytest

from backends import drive
from backends.dispatch import Dispatch
from backends.endpoint import Endpoint
from backends.http_client import Client
from tests.backends.attached import request

LIMIT = 2


def sent(requests: int, at_once: bool, lost: bool = False) -> list[int]:
    """How many requests a slow and a fast server get before one of them has answered."""
    servers = [Endpoint(Client(f"http://127.0.0.1:{port}")) for port in (1, 2)]
    for server, seconds in zip(servers, (10.0, 1.0), strict=True):
        server.answers, server.answer_tokens, server.answer_s = 1, 10, seconds
    servers[1].lost = "gone" if lost else ""

    async def run() -> None:
        dispatch = Dispatch(servers, LIMIT, at_once)
        tasks = [asyncio.create_task(dispatch.share(request(id_))) for id_ in range(requests)]
        await asyncio.sleep(0)
        assert dispatch.waiting == requests - sum(server.open for server in servers)
        await drive.cancel(tasks)

    asyncio.run(run())
    return [server.sent for server in servers]


@pytest.mark.parametrize(("requests", "slow"), [(3, 0), (19, 0), (20, 1), (40, LIMIT)])
def test_a_slow_server_gets_none_of_the_last_requests(requests: int, slow: int) -> None:
    """The fast one answers 20 in the time in which the slow one answers 1."""
    assert sent(requests, at_once=True) == [slow, LIMIT]


def test_where_more_may_come_every_place_is_used() -> None:
    assert sent(3, at_once=False) == [LIMIT, 1]


def test_a_slow_server_alone_gets_them() -> None:
    assert sent(3, at_once=True, lost=True) == [LIMIT, 0]


def test_a_cancelled_request_leaves_its_place_to_the_next() -> None:
    server = Endpoint(Client("http://127.0.0.1:1"))

    async def run() -> list[int]:
        dispatch = Dispatch([server], 1, at_once=False)
        first = await dispatch.share(request(0))
        second, third = (asyncio.create_task(dispatch.share(request(id_))) for id_ in (1, 2))
        await asyncio.sleep(0)
        first.close()  # the second has a place now, and does not know it yet
        await drive.cancel([second])
        share = await third
        counts = [server.open, dispatch.waiting]
        share.close()
        return [*counts, server.open, server.outstanding]

    assert asyncio.run(run()) == [1, 0, 0, 0]
