"""What LoadGen and our backend add to an engine: the same requests through them and without them.

Offline: tokens a second through LoadGen, our SUT and the backend, beside the engine's own offline
call, each in a process of its own, in turns. Server: time to first token at the same arrival times,
by LoadGen's clock through all of ours, and by a bare reader of the same engine's own stream.

    python benchmarks/backend_overhead.py [--backend vllm|sglang] [--requests 240] [--rounds 2]
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # the packages of this tree, and none of the files beside this one
    sys.path[0] = str(Path(__file__).parents[1])

from backends import registry
from backends.drive import running
from backends.echo import EchoEngine
from backends.types import Backend, Delta, EngineConfig, Request
from data.journal import Journal
from data.workload import Workload, build
from mlperf.qsl import query_sample_library
from mlperf.report import read_detail
from mlperf.settings import loadgen
from mlperf.sut import Sut, loadgen_test
from ref_dsinfer.cpu import dtype_for

TINY = Path("data/tiny")
FOUND = "found: "  # what a part of this program has to say, among what engines print


def workload(args: argparse.Namespace) -> Workload:
    """The first rows of the data set."""
    config = EngineConfig(str(args.model))
    return build(args.input_file, args.requests, config, args.max_new_tokens)


class Timed(Backend):
    """Another backend, and when each request came, in monotonic seconds."""

    def __init__(self, inner: Backend) -> None:
        super().__init__(inner.config)
        self.inner = inner
        self.arrivals: list[tuple[float, Request]] = []

    async def start(self) -> None:
        await self.inner.start()

    async def close(self) -> None:
        await self.inner.close()

    def stream(self, request: Request) -> AsyncGenerator[Delta, None]:
        self.arrivals.append((time.monotonic(), request))
        return self.inner.stream(request)


async def through_loadgen(backend: Backend, rows: Workload, qps: float | None) -> dict[str, Any]:
    """One LoadGen test on a started engine: Offline, or Server at `qps`. Its detail log."""
    lg = loadgen()
    settings = lg.TestSettings()
    settings.mode = lg.TestMode.PerformanceOnly
    settings.scenario = lg.TestScenario.Server if qps else lg.TestScenario.Offline
    settings.use_token_latencies = True
    settings.min_duration_ms = 0
    settings.min_query_count = len(rows)
    if qps:
        settings.server_target_qps = qps
    with tempfile.TemporaryDirectory() as name, query_sample_library(len(rows)) as library:
        with Journal(Path(name) / "journal", {}) as journal:
            sut = Sut(backend, rows, journal, bool(qps), lambda completion: None)
            await sut.serve(loadgen_test(settings, library, Path(name)))
        return read_detail(Path(name) / "mlperf_log_detail.txt").values


async def issued(rows: Workload) -> list[Request]:
    """The requests in the order in which LoadGen issues them Offline: it is always the same, and a
    long answer that comes last costs an engine time."""
    echo = Timed(EchoEngine(EngineConfig("none", coalesce=True)))
    await through_loadgen(echo, rows, None)
    return [request for _, request in echo.arrivals]


async def ours(args: argparse.Namespace) -> list[float]:
    """Tokens a second of each round, through LoadGen."""
    rows = workload(args)
    backend = registry.load(registry.lookup(args.backend), config(args, coalesce=True))
    async with running(backend):
        await through_loadgen(backend, rows, None)  # warm
        speeds = []
        for _ in range(args.rounds):
            log = await through_loadgen(backend, rows, None)
            speeds.append(log["result_tokens_per_second"])
        return speeds


def vllm_generate(args: argparse.Namespace) -> list[float]:
    """Tokens a second of each round, of vLLM's own `LLM.generate`."""
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt

    from backends.vllm import engine_args

    rows = workload(args)
    arguments = engine_args(config(args, coalesce=True))
    names = (
        *("model", "dtype", "max_num_seqs", "enforce_eager", "kv_cache_memory_bytes"),
        *("enable_prefix_caching", "skip_tokenizer_init", "disable_log_stats", "seed"),
    )
    engine = LLM(**{name: getattr(arguments, name) for name in names})
    requests = asyncio.run(issued(rows))
    prompts = [TokensPrompt(prompt_token_ids=list(one.prompt_ids)) for one in requests]
    params = [
        SamplingParams(
            temperature=0.0,
            max_tokens=one.max_new_tokens,
            stop_token_ids=sorted(one.stop_ids),
            ignore_eos=True,
            detokenize=False,
        )
        for one in requests
    ]
    engine.generate(prompts, params, use_tqdm=False)  # warm
    speeds = []
    for _ in range(args.rounds):
        began = time.monotonic()
        answers = engine.generate(prompts, params, use_tqdm=False)
        # as LoadGen is told: without the stop id
        tokens = sum(
            len(one.outputs[0].token_ids) - (one.outputs[0].finish_reason == "stop")
            for one in answers
        )
        speeds.append(tokens / (time.monotonic() - began))
    return speeds


async def sglang_bare(args: argparse.Namespace) -> dict[str, list[float]]:
    """Tokens a second of each round on one SGLang server, in turns: of a bare aiohttp client that
    asks for all answers at once, and through LoadGen and our backend."""
    import aiohttp

    from backends.sglang import SglangBackend

    rows = workload(args)
    backend = SglangBackend(config(args, coalesce=True))
    requests = await issued(rows)
    speeds: dict[str, list[float]] = {"theirs": [], "ours": []}
    async with running(backend):
        assert backend._server
        client = backend._server._endpoints[0].client
        lines = client._headers.decode().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines if line)
        bodies = [backend._server._dialect.body(one, "", True) for one in requests]

        async def ask(session: aiohttp.ClientSession, body: bytes) -> int:
            async with session.post(f"{client.url}/generate", data=body) as answer:
                reply = await answer.json()
                return len(reply["output_ids"]) - (
                    reply["meta_info"]["finish_reason"]["type"] == "stop"
                )

        async def bare() -> float:
            limits = aiohttp.ClientTimeout(total=None)
            connector = aiohttp.TCPConnector(limit=0)
            async with aiohttp.ClientSession(
                headers=headers, timeout=limits, connector=connector
            ) as session:
                began = time.monotonic()
                tokens = sum(await asyncio.gather(*(ask(session, body) for body in bodies)))
                return tokens / (time.monotonic() - began)

        await bare()  # warm, both of them
        await through_loadgen(backend, rows, None)
        for _ in range(args.rounds):
            speeds["theirs"].append(await bare())
            log = await through_loadgen(backend, rows, None)
            speeds["ours"].append(log["result_tokens_per_second"])
    return speeds


PEERS = {"vllm": "LLM.generate", "sglang": "a bare client of its server"}


async def first_tokens(args: argparse.Namespace) -> dict[str, list[float]]:
    """Milliseconds to the first token: p50 and p99 of each round, through all of ours and bare."""
    rows = workload(args)
    backend = Timed(registry.load(registry.lookup(args.backend), config(args, coalesce=False)))
    times_ms: dict[str, list[float]] = {name: [] for name in ("ours p50", "ours p99")}
    times_ms |= {name: [] for name in ("bare p50", "bare p99")}

    async def bare(request: Request, due: float, times: list[float]) -> None:
        await asyncio.sleep(due - time.monotonic())
        first = True
        async for _ in backend.inner.stream(request):
            if first:
                times.append((time.monotonic() - due) * 1e3)
                first = False

    async with running(backend):
        await through_loadgen(backend, rows, args.qps)  # warm
        for _ in range(args.rounds):
            backend.arrivals.clear()
            log = await through_loadgen(backend, rows, args.qps)
            for share in ("50", "99"):
                key = f"result_first_token_{share}.00_percentile_latency_ns"
                times_ms[f"ours p{share}"].append(log[key] / 1e6)
            start = time.monotonic() + 0.1 - backend.arrivals[0][0]
            times: list[float] = []
            await asyncio.gather(
                *(bare(one, start + came, times) for came, one in backend.arrivals)
            )
            times_ms["bare p50"].append(statistics.median(times))
            times_ms["bare p99"].append(statistics.quantiles(times, n=100)[98])
    return times_ms


def config(args: argparse.Namespace, coalesce: bool) -> EngineConfig:
    return EngineConfig(
        str(args.model),
        device=args.device,
        dtype=args.dtype,
        max_running=args.max_running,
        eager=True,
        coalesce=coalesce,
    )


def apart(part: str) -> Any:
    """What one part of this program finds, in a process of its own."""
    words = [sys.executable, __file__, *sys.argv[1:], "--part", part]
    ended = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    lines = [line for line in ended.stdout.splitlines() if line.startswith(FOUND)]
    return json.loads(lines[-1].removeprefix(FOUND))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backend", choices=tuple(PEERS), default="vllm")
    parser.add_argument("--model", type=Path, default=TINY / "model")
    parser.add_argument("--input-file", type=Path, default=TINY / "final_output.pkl")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default=dtype_for("auto", "cpu"))
    parser.add_argument("--requests", type=int, default=240)
    parser.add_argument("--max-new-tokens", type=int, default=4000)
    parser.add_argument("--max-running", type=int, default=64)
    parser.add_argument("--qps", type=float, default=8.0, help="server's; default: 8")
    parser.add_argument("--rounds", type=int, default=3, help="of each, in each turn; default: 3")
    parser.add_argument("--turns", type=int, default=2, help="default: 2")
    parser.add_argument(
        "--part", choices=("ours", "theirs", "both", "first"), help=argparse.SUPPRESS
    )
    args = parser.parse_args()
    if args.part == "ours":
        print(FOUND + json.dumps(asyncio.run(ours(args))))
    elif args.part == "theirs":
        print(FOUND + json.dumps(vllm_generate(args)))
    elif args.part == "both":
        print(FOUND + json.dumps(asyncio.run(sglang_bare(args))))
    elif args.part == "first":
        print(FOUND + json.dumps(asyncio.run(first_tokens(args))))
    else:
        report(args)


def report(args: argparse.Namespace) -> None:
    """Every part in turns, and a line for each figure."""
    speeds: dict[str, list[float]] = {"theirs": [], "ours": []}
    for _ in range(args.turns):
        if args.backend == "sglang":
            for part, figures in apart("both").items():
                speeds[part] += figures
        else:
            for part, figures in speeds.items():
                figures += apart(part)
    print(f"{args.backend}, {args.requests} requests, {args.dtype}, tokens/s: median (min - max)")
    theirs = statistics.median(speeds["theirs"])
    for part, name in (
        ("theirs", PEERS[args.backend]),
        ("ours", "LoadGen and our backend"),
    ):
        middle, low, high = statistics.median(speeds[part]), min(speeds[part]), max(speeds[part])
        print(f"{name:26} {middle:8.0f} ({low:.0f} - {high:.0f}) {middle / theirs:6.3f}x")
    first = apart("first")
    print(f"first token at {args.qps:g} requests/s, ms: median of {args.rounds} rounds")
    for share in ("p50", "p99"):
        bare, mine = (statistics.median(first[f"{who} {share}"]) for who in ("bare", "ours"))
        print(f"{share}: bare stream {bare:.2f}, ours {mine:.2f}, added {mine - bare:+.2f}")


if __name__ == "__main__":
    main()
