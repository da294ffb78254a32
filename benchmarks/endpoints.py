"""How much of the speed of several unequal servers one client makes use of.

Each server is an echo server that runs 16 requests at once, in steps of 40 to 320 milliseconds.
First each has a client and requests of its own, as many as it is fast. Then all of them are one
system, and as a peer they get the same number of requests each, whatever their speed.

    python benchmarks/endpoints.py --servers 32 --requests 32000
"""

import argparse
import asyncio
import random
import sys
import time
from pathlib import Path

if __name__ == "__main__":  # the packages of this tree, and none of the files beside this one
    sys.path[0] = str(Path(__file__).parents[1])

from backends.drive import run_all, running
from backends.types import EngineConfig, Request
from backends.vllm_server import VllmServer
from benchmarks.echo import echo_servers

PROMPT = tuple(range(1000, 1050))
TOKENS = (5, 15)  # of an answer, shortest and longest
LANES = 16  # requests that a server runs at once
STEP_MS = (40.0, 320.0)  # of a server, shortest and longest


def requests(count: int, chance: random.Random) -> list[Request]:
    """So many, with answers of unequal length."""
    return [Request(id_, PROMPT, chance.randint(*TOKENS), frozenset()) for id_ in range(count)]


async def rate(urls: list[str], several: list[Request], limit: int) -> float:
    """Tokens per second of these requests on these servers, each of which runs up to `limit`."""
    config = EngineConfig(
        "echo", endpoints=tuple(urls), max_model_len=1, coalesce=True, max_running=limit
    )
    async with running(backend := VllmServer(config)):
        began = time.perf_counter()
        answers = await run_all(backend, several)
        return sum(len(one.token_ids) for one in answers) / (time.perf_counter() - began)


async def separate(urls: list[str], shares: list[list[Request]], limit: int) -> list[float]:
    """Tokens per second of each server, all at the same time, with a client and requests of its
    own."""
    pairs = zip(urls, shares, strict=True)
    return await asyncio.gather(*(rate([url], share, limit) for url, share in pairs))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--servers", type=int, default=32, help="default: 32")
    parser.add_argument("--requests", type=int, default=32000, help="of all; default: 32000")
    parser.add_argument("--seed", type=int, default=0, help="of the speeds; default: 0")
    args = parser.parse_args()

    chance = random.Random(args.seed)
    steps_ms = [chance.uniform(*STEP_MS) for _ in range(args.servers)]
    limit = LANES + 2  # so that no server waits for its next request
    with echo_servers(*(f"{LANES}:{step_ms:.1f}" for step_ms in steps_ms)) as urls:
        several = requests(args.requests, chance)
        total = sum(1 / step_ms for step_ms in steps_ms)
        shares = [requests(round(args.requests / step_ms / total), chance) for step_ms in steps_ms]
        own = sum(asyncio.run(separate(urls, shares, limit)))
        print(f"{args.servers} servers, {args.requests} requests; of their own {own:,.0f} tokens/s")
        print(f"{'':<20}{'tokens/s':>12}{'of the sum':>12}", flush=True)
        cpu = time.process_time()
        show("all as one system", asyncio.run(rate(urls, several, limit)), own)
        cpu = time.process_time() - cpu
        equal = [several[number :: len(urls)] for number in range(len(urls))]
        began = time.perf_counter()
        asyncio.run(separate(urls, equal, limit))
        tokens = sum(one.max_new_tokens for one in several)
        show("equal shares", tokens / (time.perf_counter() - began), own)
    print(f"CPU time of the client of all: {cpu:.1f} s")


def show(name: str, tokens_s: float, own: float) -> None:
    """Print a row of the table."""
    print(f"{name:<20}{tokens_s:>12,.0f}{tokens_s / own:>12.3f}", flush=True)


if __name__ == "__main__":
    main()
