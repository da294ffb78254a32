"""How many tokens a second the client of attached servers can take in: an echo server in a process
of its own sends one event a token to every stream, as fast as it can.

Beside it in the same run the openai client, where it is installed, on a tenth of the tokens. A
client whose CPU time a token is less than the time a token took has waited for the server.

    python benchmarks/client.py --streams 500 --tokens 1000
"""

import argparse
import asyncio
import importlib.util
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

if __name__ == "__main__":  # the packages of this tree, and none of the files beside this one
    sys.path[0] = str(Path(__file__).parents[1])

from backends.drive import run_all, running
from backends.types import EngineConfig, Request
from backends.vllm_server import VllmServer
from benchmarks.echo import echo_servers

PROMPT = tuple(range(1000, 1100))
SHARE = 10  # of the tokens, for a client that is known to be slow


async def ours(url: str, streams: int, tokens: int) -> int:
    """Through `Backend.stream` and `drive.collect`. Returns tokens received."""
    backend = VllmServer(EngineConfig("echo", endpoints=(url,), max_model_len=1))
    requests = [Request(number, PROMPT, tokens, frozenset()) for number in range(streams)]
    async with running(backend):
        return sum(len(done.token_ids) for done in await run_all(backend, requests))


async def openai(url: str, streams: int, tokens: int) -> int:
    """Through the openai client. Returns tokens received."""
    from openai import AsyncOpenAI

    client = AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=600)

    async def one() -> int:
        received = 0
        stream = await client.completions.create(
            model="echo",
            prompt=PROMPT,
            max_tokens=tokens,
            stream=True,
            extra_body={"stop_token_ids": [], "return_token_ids": True},
        )
        async for event in stream:
            received += len(event.choices[0].token_ids)
        return received

    async with client:
        return sum(await asyncio.gather(*(one() for _ in range(streams))))


def measure(
    client: Callable[..., Awaitable[int]], url: str, streams: int, tokens: int
) -> tuple[float, float]:
    """Tokens per second of one run, and microseconds of this process for each."""

    async def run() -> tuple[float, float]:
        began, cpu = time.perf_counter(), time.process_time()
        received = await client(url, streams, tokens)
        assert received == streams * tokens, f"{received} tokens of {streams * tokens}"
        cpu = time.process_time() - cpu
        return received / (time.perf_counter() - began), cpu / received * 1e6

    return asyncio.run(run())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", type=int, default=500, help="at once; default: 500")
    parser.add_argument("--tokens", type=int, default=1000, help="an answer; default: 1000")
    parser.add_argument("--repeat", type=int, default=3, help="the best is shown; default: 3")
    args = parser.parse_args()

    clients = {
        "our client": (ours, args.tokens),
        "openai client": (openai, max(1, args.tokens // SHARE)),
    }
    rates = {}
    with echo_servers() as [url]:
        for name, (client, tokens) in clients.items():
            if client is not openai or importlib.util.find_spec("openai"):
                runs = [measure(client, url, args.streams, tokens) for _ in range(args.repeat)]
                rates[name] = max(runs)

    print(f"{args.streams} streams, one event a token, best of {args.repeat}")
    print(f"{'':<16}{'tokens/s':>12}{'of ours':>10}{'CPU us/token':>16}")
    for name in clients:
        if name in rates:
            rate, cpu = rates[name]
            print(f"{name:<16}{rate:>12,.0f}{rate / rates['our client'][0]:>10.2f}{cpu:>16.2f}")
        else:
            print(f"{name:<16}   (skipped: it is not installed)")


if __name__ == "__main__":
    main()
