"""What the SUT adds to an engine: our SUT on the echo engine, which answers at once, beside the
smallest SUT that gives each sample its own answer, and beside one buffer for all samples, reported
inside LoadGen's `issue` callback: the least that its Python binding allows. All in one run.

Offline: microseconds a sample, all of them issued at once, with and without the journal. Server:
latency of the first token and of the whole answer, of samples that come at random times; then
tokens a second of many streams at once, one token after another. With --memory: the peak memory of
an accuracy run and of its results files, above what the process had before. With --view: processor
time of the timeline and of the live view, beside that of the same run without them.

    python benchmarks/sut.py --samples 4388 --tokens 3886
"""

import argparse
import asyncio
import contextlib
import os
import queue
import random
import resource
import sys
import tempfile
import threading
import time
from array import array
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

if __name__ == "__main__":  # the packages of this tree, and none of the files beside this one
    sys.path[0] = str(Path(__file__).parents[1])

from backends.drive import running
from backends.echo import EchoEngine
from backends.types import TOKEN, Completion, Delta, EngineConfig, Request, Stats
from benchmark import ROWS, TOKENS_PER_SAMPLE
from data.journal import Journal, read_journal
from data.live import Limits, RunView
from data.recorder import TIMELINE, Recorder, Second
from mlperf.qsl import query_sample_library
from mlperf.report import read_detail
from mlperf.settings import loadgen
from mlperf.sut import Sut, loadgen_test

EOS_ID = 1
RUNNING = 256  # requests at a time, when memory is measured
TINY = Path(__file__).parents[1] / "data" / "tiny" / "model"

Way = Callable[["Rows", Path, bool, Callable[[int], None]], None]


class Rows:
    """Prompts of one length; the echo engine answers by them."""

    prompts = SimpleNamespace(eos_id=EOS_ID)

    def __init__(self, tokens: int) -> None:
        # ids of printable characters in the bundled tokenizer
        self.ids = tuple(random.Random(0).choices(range(10, 100), k=tokens))

    def request(self, request_id: int, index: int) -> Request:
        return Request(request_id, self.ids, len(self.ids), frozenset({EOS_ID}), row=index)


class Streaming(EchoEngine):
    """Answers as engines do: each iteration of the event loop brings a token to every stream."""

    async def stream(self, request: Request) -> AsyncGenerator[Delta, None]:
        last = len(request.prompt_ids) - 1
        for position, id_ in enumerate(request.prompt_ids):
            await asyncio.sleep(0)
            yield Delta((id_,), "length" if position == last else None, time.monotonic_ns())


class NoJournal(Journal):
    """Takes the journal's place and keeps nothing."""

    def add(self, sample_index: int, completion: Completion) -> None:
        pass


def through_sut(
    engine: type[EchoEngine] = EchoEngine, journal: type[Journal] = Journal, **options: str
) -> Way:
    """The test on our SUT. `options`: the echo engine's."""

    def way(rows: Rows, folder: Path, server: bool, start: Callable[[int], None]) -> None:
        async def run() -> None:
            backend = engine(EngineConfig("none", coalesce=not server, options=options))
            with journal(folder / "journal", {}) as kept:
                async with running(backend):
                    sut = Sut(backend, rows, kept, server, lambda completion: None)  # type: ignore[arg-type]
                    await sut.serve(start)

        asyncio.run(run())

    return way


def smallest(rows: Rows, folder: Path, server: bool, start: Callable[[int], None]) -> None:
    """The test on a thread that makes an array for each sample and reports it on its own."""
    lg = loadgen()
    issued: queue.SimpleQueue[list[int]] = queue.SimpleQueue()

    def answer() -> None:
        while query_ids := issued.get():
            for query_id in query_ids:
                ids = array(TOKEN, rows.ids)
                address, count = ids.buffer_info()
                if server:
                    first = lg.QuerySampleResponse(query_id, address, ids.itemsize, 1)
                    lg.FirstTokenComplete([first])
                whole = lg.QuerySampleResponse(query_id, address, count * ids.itemsize, count)
                lg.QuerySamplesComplete([whole])

    handle = lg.ConstructFastSUT(lambda query_ids, indices: issued.put(query_ids), lambda: None)
    thread = threading.Thread(target=answer)
    thread.start()
    start(handle)
    issued.put([])
    thread.join()
    lg.DestroyFastSUT(handle)


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


def measure(
    way: Way,
    samples: int,
    tokens: int,
    qps: float | None = None,
    accuracy: bool = False,
    then: Callable[[Path], None] = lambda folder: None,
) -> dict[str, Any]:
    """One LoadGen test, Offline or Server at `qps`; returns what its detail log says.

    `then` is called with the folder of the journal.
    """
    lg = loadgen()
    settings = lg.TestSettings()
    settings.scenario = lg.TestScenario.Server if qps else lg.TestScenario.Offline
    settings.mode = lg.TestMode.AccuracyOnly if accuracy else lg.TestMode.PerformanceOnly
    settings.use_token_latencies = True
    settings.min_duration_ms = 0
    settings.min_query_count = samples
    settings.server_target_qps = qps or 1
    with tempfile.TemporaryDirectory() as name, query_sample_library(samples) as library:
        way(Rows(tokens), Path(name), bool(qps), loadgen_test(settings, library, Path(name)))
        then(Path(name))
        return read_detail(Path(name) / "mlperf_log_detail.txt").values


def print_offline(args: argparse.Namespace) -> None:
    """Microseconds a sample."""
    ways = {
        "inside issue": inside_issue,
        "smallest SUT": smallest,
        "our SUT": through_sut(),
        "no journal": through_sut(journal=NoJournal),
    }
    # in turns: other work on the machine then slows all ways down
    turns = [
        {
            name: 1e6 / measure(way, args.samples, args.tokens)["result_samples_per_second"]
            for name, way in ways.items()
        }
        for _ in range(args.repeat)
    ]
    least = {name: min(turn[name] for turn in turns) for name in ways}
    print(f"\noffline, {args.samples} samples of {args.tokens} tokens")
    for name, cost in least.items():
        shares = (f"{least[peer] / cost:>8.1%} of {peer}" for peer in list(ways)[:2])
        print(f"{name:<14}{cost:>10.1f} us/sample" + "".join(shares))
    print(f"{'the journal':<14}{1 - least['no journal'] / least['our SUT']:>10.1%} of the time")


def print_server(args: argparse.Namespace) -> None:
    """Latencies, in microseconds."""
    print(f"\nserver, {args.samples} samples of {args.tokens} tokens, {args.qps:g} samples/s")
    heads = ("ttft p50", "ttft p99", "answer p50", "answer p99 us")
    print(f"{'':<14}" + "".join(f"{head:>14}" for head in heads))
    ways = {"inside issue": inside_issue, "smallest SUT": smallest, "our SUT": through_sut()}
    for name, way in ways.items():
        logs = [measure(way, args.samples, args.tokens, args.qps) for _ in range(args.repeat)]
        best = min(logs, key=lambda log: log["result_99.00_percentile_latency_ns"])
        figures = [
            *(best[f"result_first_token_{p}.00_percentile_latency_ns"] / 1e3 for p in (50, 99)),
            *(best[f"result_{p}.00_percentile_latency_ns"] / 1e3 for p in (50, 99)),
        ]
        print(f"{name:<14}" + "".join(f"{figure:>14.1f}" for figure in figures))


def print_streaming(args: argparse.Namespace) -> None:
    """Tokens a second of streams that are all open at once."""
    print(f"\nserver, {args.streams} streams of {args.tokens} tokens at once")
    rates = {}
    for name, journal in {"our SUT": Journal, "no journal": NoJournal}.items():
        way = through_sut(Streaming, journal)
        rates[name] = max(
            measure(way, args.streams, args.tokens, qps=1e6)["result_completed_tokens_per_second"]
            for _ in range(args.repeat)
        )
        print(f"{name:<14}{rates[name]:>10.0f} tokens/s")
    print(f"{'the journal':<14}{1 - rates['our SUT'] / rates['no journal']:>10.1%} of the rate")


def print_memory(args: argparse.Namespace) -> None:
    """Peak memory of an accuracy run and its results, and of its parts."""
    import pandas as pd

    from data.prompts import Prompts
    from data.results import results_frame, write_frame

    prompts = Prompts(str(TINY))

    def write_results(folder: Path) -> None:
        print(f"{'LoadGen, SUT':<14}{peak() - before:>10.0f} MB")
        frame = pd.DataFrame({"dataset": ["gpqa"] * args.samples})
        answers = read_journal(folder / "journal")
        write_frame(results_frame(frame, answers, prompts, "echo"), folder / "results")
        print(f"{'with results':<14}{peak() - before:>10.0f} MB")

    print(f"\npeak memory, {args.samples} samples of {args.tokens} tokens")
    before = peak()
    way = through_sut(slots=str(RUNNING))
    measure(way, args.samples, args.tokens, accuracy=True, then=write_results)


def print_view(args: argparse.Namespace) -> None:
    """Processor time of the timeline, a sample, and of the live view, a second."""
    turns = []
    for _ in range(args.repeat):
        begin_s = time.process_time()
        measure(through_sut(), args.samples, args.tokens)
        turns.append((time.process_time() - begin_s, recorder_s(args.samples, args.tokens)))
    sut, recorder = (1e6 * min(turn) / args.samples for turn in zip(*turns, strict=True))
    view = min(view_s(args.samples) for _ in range(args.repeat))
    print(f"\nprocessor time, {args.samples} samples of {args.tokens} tokens")
    print(f"{'our SUT':<14}{sut:>10.1f} us/sample, with LoadGen and the journal")
    print(f"{'the timeline':<14}{recorder:>10.2f} us/sample: {recorder / sut:.2%} of that")
    print(f"{'the live view':<14}{1e3 * view:>10.2f} ms a second: {view:.2%} of a core")


def recorder_s(samples: int, tokens: int) -> float:
    """Processor seconds of recording so many samples, and of writing their timeline."""
    import pyarrow.parquet  # noqa: F401  which a run has imported before, to read its data set

    rows, ids = Rows(tokens), array(TOKEN, range(tokens))
    requests = [rows.request(row, row) for row in range(samples)]
    deltas = [Delta((1,), None, time.monotonic_ns()) for _ in requests]
    completions = [Completion(row, ids, "stop", 10**9, 10**10) for row in range(samples)]

    async def run(path: Path) -> float:
        backend = EchoEngine(EngineConfig("none"))
        begin_s = time.process_time()
        async with Recorder(path, backend, "server", "performance", "echo") as recorder:
            for request in requests:
                recorder.arrive(request, time.monotonic_ns())
            for request, delta in zip(requests, deltas, strict=True):
                recorder.start(request, delta)
            for completion in completions:
                recorder.finish(completion)
        return time.process_time() - begin_s

    with tempfile.TemporaryDirectory() as name:
        return asyncio.run(run(Path(name) / TIMELINE))


def view_s(samples: int) -> float:
    """Processor seconds of one drawing of the live view, of a run with so many finished samples."""
    from rich.console import Console
    from rich.live import Live

    backend = EchoEngine(EngineConfig("none"))
    recorder = Recorder(Path("none"), backend, "server", "performance", "echo")
    recorder.start_ns = time.monotonic_ns()
    for number in range(samples):
        recorder.ttft_ns.append(number)
        recorder.tpot_ns.append(number)
    recorder.stats = Stats(512, 20, 0.5, 3)
    recorder.seconds += [Second(0, 10**9, 10_000, recorder.stats)] * 600
    view = RunView(False, "server, performance, vllm", Limits(2000, 80), ["a reason"])
    view.follow(recorder, 2 * samples)
    drawings = 50
    main_fd, terminal_fd = os.openpty()
    threading.Thread(target=drain, args=(main_fd,), daemon=True).start()
    with open(terminal_fd, "w") as terminal:  # noqa: PTH123
        live = Live(get_renderable=view.content, console=Console(file=terminal), auto_refresh=False)
        with live:
            begin_s = time.process_time()
            for _ in range(drawings):
                live.refresh()
            return (time.process_time() - begin_s) / drawings


def drain(terminal: int) -> None:
    """Read what comes from a terminal until it is closed."""
    with contextlib.suppress(OSError):
        while os.read(terminal, 1 << 16):
            pass


def peak() -> float:
    """Of this process, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    mean = round(TOKENS_PER_SAMPLE)
    parser.add_argument("--samples", type=int, default=ROWS, help=f"default: {ROWS}")
    parser.add_argument("--tokens", type=int, default=mean, help=f"an answer; default: {mean}")
    parser.add_argument("--qps", type=float, default=500, help="server's; default: 500")
    parser.add_argument("--streams", type=int, default=500, help="at once; default: 500")
    parser.add_argument("--repeat", type=int, default=3, help="the best is shown; default: 3")
    parser.add_argument("--memory", action="store_true", help="measure peak memory only")
    parser.add_argument("--view", action="store_true", help="measure timeline and live view only")
    args = parser.parse_args()
    if args.memory:
        print_memory(args)
        return
    if args.view:
        print_view(args)
        return
    print_offline(args)
    print_server(args)
    print_streaming(args)


if __name__ == "__main__":
    main()
