"""What the SUT adds to an engine: our SUT on the echo engine, which answers at once, beside answers
given inside LoadGen's `issue` callback, the least that its Python binding allows. Both in one run.

Offline: microseconds a sample, all of them issued at once. Server: latency of the first token and
of the whole answer, of samples that come at random times.

    python benchmarks/sut.py --samples 4388 --tokens 3886
"""

import argparse
import asyncio
import sys
import tempfile
from array import array
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

if __name__ == "__main__":  # the packages of this tree, and none of the files beside this one
    sys.path[0] = str(Path(__file__).parents[1])

from backends.drive import running
from backends.echo import EchoEngine
from backends.types import EngineConfig, Request
from benchmark import ROWS, TOKENS_PER_SAMPLE
from data.journal import Journal
from mlperf.qsl import query_sample_library
from mlperf.report import read_detail
from mlperf.settings import loadgen
from mlperf.sut import TOKEN, Sut

EOS_ID = 1


class Rows:
    """Prompts of one length; the echo engine answers by them."""

    prompts = SimpleNamespace(eos_id=EOS_ID)

    def __init__(self, tokens: int) -> None:
        self.ids = tuple(range(1000, 1000 + tokens))

    def request(self, request_id: int, index: int) -> Request:
        return Request(request_id, self.ids, len(self.ids), frozenset({EOS_ID}))


def through_sut(rows: Rows, folder: Path, server: bool, start: Callable[[int], None]) -> None:
    """The test on our SUT, journal included."""

    async def run() -> None:
        backend = EchoEngine(EngineConfig("none", coalesce=not server))
        with Journal(folder / "journal", {}) as journal:
            async with running(backend):
                sut = Sut(backend, rows, journal, server, lambda completion: None)  # type: ignore[arg-type]
                await sut.serve(start)

    asyncio.run(run())


def inside_issue(rows: Rows, folder: Path, server: bool, start: Callable[[int], None]) -> None:
    """The test on a callback that answers by a ready buffer."""
    lg = loadgen()
    answer = array(TOKEN, rows.ids)
    address, count = answer.buffer_info()

    def issue(query_ids: list[int], indices: list[int]) -> None:
        if server:
            lg.FirstTokenComplete(
                [lg.QuerySampleResponse(id_, address, answer.itemsize, 1) for id_ in query_ids]
            )
        lg.QuerySamplesComplete(
            [
                lg.QuerySampleResponse(id_, address, count * answer.itemsize, count)
                for id_ in query_ids
            ]
        )

    handle = lg.ConstructFastSUT(issue, lambda: None)
    start(handle)
    lg.DestroyFastSUT(handle)


def measure(way: Callable[..., None], args: argparse.Namespace, server: bool) -> dict[str, Any]:
    """One LoadGen test; returns what its detail log says."""
    lg = loadgen()
    settings = lg.TestSettings()
    settings.scenario = lg.TestScenario.Server if server else lg.TestScenario.Offline
    settings.mode = lg.TestMode.PerformanceOnly
    settings.use_token_latencies = True
    settings.min_duration_ms = 0
    settings.min_query_count = args.samples
    settings.server_target_qps = args.qps
    with tempfile.TemporaryDirectory() as name, query_sample_library(args.samples) as library:
        logs = lg.LogSettings()
        logs.log_output.outdir = name
        logs.enable_trace = False

        def start(handle: int) -> None:
            lg.StartTestWithLogSettings(handle, library, settings, logs, "")

        way(Rows(args.tokens), Path(name), server, start)
        return read_detail(Path(name) / "mlperf_log_detail.txt").values


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    mean = round(TOKENS_PER_SAMPLE)
    parser.add_argument("--samples", type=int, default=ROWS, help=f"default: {ROWS}")
    parser.add_argument("--tokens", type=int, default=mean, help=f"an answer; default: {mean}")
    parser.add_argument("--qps", type=float, default=500, help="server's; default: 500")
    parser.add_argument("--repeat", type=int, default=3, help="the best is shown; default: 3")
    args = parser.parse_args()

    ways = {"inside issue": inside_issue, "our SUT": through_sut}
    print(f"{args.samples} samples of {args.tokens} tokens, server at {args.qps:g} samples/s")
    heads = ("us/sample", "ttft p50", "ttft p99", "answer p50", "answer p99 us")
    print(f"{'':<14}" + "".join(f"{head:>14}" for head in heads))
    for name, way in ways.items():
        offline = [measure(way, args, server=False) for _ in range(args.repeat)]
        server = [measure(way, args, server=True) for _ in range(args.repeat)]
        best = min(server, key=lambda log: log["result_99.00_percentile_latency_ns"])
        figures = [
            1e6 / max(log["result_samples_per_second"] for log in offline),
            *(best[f"result_first_token_{p}.00_percentile_latency_ns"] / 1e3 for p in (50, 99)),
            *(best[f"result_{p}.00_percentile_latency_ns"] / 1e3 for p in (50, 99)),
        ]
        print(f"{name:<14}" + "".join(f"{figure:>14.1f}" for figure in figures))


if __name__ == "__main__":
    main()
