"""A probe: one LoadGen test at one rate, ended early once too many of its samples are late."""

import argparse
import asyncio
import logging
import math
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backends.drive import cancel
from backends.types import TOKEN, Backend, Completion, Delta, Request
from data.journal import Journal
from data.progress import Progress
from data.workload import Workload
from errors import LoadGenError
from mlperf import early_stopping, report, settings
from mlperf.early_stopping import LATE, likelihood
from mlperf.state import RunState
from mlperf.sut import Sut, loadgen_test

log = logging.getLogger(__name__)

JOURNAL = "completions.journal"

LOOK_S = 0.05  # between two looks at the open requests
LIKELY = 0.5  # the least probability that a full run is VALID
# A queue that grows by a share of 1/60 of what arrives shows in a probe of 60 TTFT limits.
TTFT_LIMITS = 60
ANSWERS = 2  # mean answers that a probe lasts, or its load would not be a long run's
SPREAD = 4  # standard deviations of the number of arrivals, a Poisson variable


@dataclass(frozen=True)
class Limits:
    """The limits of the 99th percentiles."""

    ttft_s: float
    tpot_s: float


@dataclass(frozen=True)
class Probe:
    """A probe and its judgement."""

    rate: float  # samples/s
    queries: int  # that arrived
    ttft_p99_ms: float | None  # by LoadGen; None: ended early
    tpot_p99_ms: float | None
    late_first: int  # queries with a TTFT above its limit
    late_tokens: int  # queries with a TPOT above its limit
    answer_s: float | None  # mean time from a query to the end of its answer
    within: bool  # both percentiles are within the limits
    run_queries: int  # of a full run at this rate
    likelihood: float  # that such a run is VALID

    @property
    def passes(self) -> bool:
        """Whether a full run at this rate is likely to be VALID."""
        return self.within and self.likelihood >= LIKELY


class Meter:
    """Counts a test's late samples; latencies are taken as LoadGen takes them."""

    def __init__(self, limits: Limits, expected: float, clock: Callable[[], float]) -> None:
        """`expected`: number of samples, on average. `clock`: in seconds."""
        self.arrived = 0
        self.late_first = 0  # samples with a TTFT above its limit, whether or not it is over
        self.late_tokens = 0  # samples with a TPOT above its limit
        self._limits = limits
        self._clock = clock
        most = expected + SPREAD * expected**0.5 + 1
        self._allowed = most - 1 - int(most * (1 - LATE))
        self._waiting: dict[int, float] = {}  # when requests arrived that have no token yet
        self._started: dict[int, float] = {}  # when open requests had their first token

    def arrive(self, request_id: int) -> None:
        """A request has arrived."""
        self.arrived += 1
        self._waiting[request_id] = self._clock()

    def start(self, request_id: int) -> None:
        """A request has its first token."""
        now = self._started[request_id] = self._clock()
        arrival = self._waiting.pop(request_id, None)  # None: counted as late already
        if arrival is not None and now - arrival > self._limits.ttft_s:
            self.late_first += 1

    def finish(self, completion: Completion) -> None:
        """A request is answered."""
        duration = self._clock() - self._started.pop(completion.request_id)
        intervals = len(completion.token_ids) - 1
        if intervals > 0 and duration / intervals > self._limits.tpot_s:
            self.late_tokens += 1

    @property
    def hopeless(self) -> bool:
        """Whether so many samples are late that no 99th percentile can be within its limit."""
        oldest = self._clock() - self._limits.ttft_s
        for request_id, arrival in list(self._waiting.items()):  # in order of arrival
            if arrival >= oldest:
                break
            del self._waiting[request_id]
            self.late_first += 1
        return max(self.late_first, self.late_tokens) > self._allowed


class ProbeSut(Sut):
    """A SUT that gives up once its meter is hopeless: it then answers at once, with nothing.

    LoadGen can't be stopped, but so its test ends soon after the last arrival.
    """

    def __init__(
        self,
        backend: Backend,
        workload: Workload,
        journal: Journal,
        meter: Meter,
        on_done: Callable[[Completion], None],
    ) -> None:
        super().__init__(backend, workload, journal, True, on_done)
        self.gave_up = False
        self._meter = meter
        self._without_token: set[int] = set()  # open requests
        self._answering: set[asyncio.Task[Any]] = set()

    async def serve(self, test: Callable[[int], None]) -> None:
        looking = asyncio.create_task(self._look())
        try:
            await super().serve(test)
        finally:
            await cancel([looking])

    async def _look(self) -> None:
        while not self._meter.hopeless:
            await asyncio.sleep(LOOK_S)
        self.gave_up = True
        log.info("too many queries are late: the rest of this probe's arrivals get no answer")
        for task in self._answering:
            task.cancel()

    async def _answer(self, request: Request) -> None:
        self._without_token.add(request.id)
        if not self.gave_up:
            self._meter.arrive(request.id)
            try:
                await self._try(request)
            except asyncio.CancelledError:
                if not self.gave_up:
                    raise
            else:
                return
        if request.id in self._without_token:
            self._without_token.remove(request.id)
            self._report(self._first_tokens, request.id, array(TOKEN))
        self._report(self._completions, request.id, array(TOKEN))

    async def _try(self, request: Request) -> None:
        task = asyncio.current_task()
        assert task
        self._answering.add(task)
        try:
            await super()._answer(request)
        finally:
            self._answering.discard(task)

    def _start(self, request: Request, delta: Delta) -> None:
        self._without_token.remove(request.id)
        self._meter.start(request.id)
        super()._start(request, delta)


def judged(
    rate: float, log: report.DetailLog | None, late: tuple[int, int], queries: int, run_queries: int
) -> Probe:
    """The probe with such a log of LoadGen's; without one it was ended early.

    `late`: queries with a late first token, and with late tokens. `queries`: that arrived.
    """
    # TTFT and TPOT may be late together or not: the sum is the safe side
    doubts = [1 - likelihood(count, queries, run_queries) for count in late] if log else [1]
    valid = max(0.0, 1 - sum(doubts))
    if log is None:
        return Probe(rate, queries, None, None, *late, None, False, run_queries, valid)
    figures = report.performance_figures(log)
    ttft, tpot = figures["ttft_p99_ms"], figures["tpot_p99_ms"]
    within = (
        ttft <= log.values["requested_server_ttft_latency"] / 1e6
        and tpot <= log.values["requested_server_tpot_latency"] / 1e6
    )
    answer_s = log.values["result_mean_latency_ns"] / 1e9
    return Probe(rate, queries, ttft, tpot, *late, answer_s, within, run_queries, valid)


class Prober:
    """Runs LoadGen tests on a started engine, each with logs in a folder of its own."""

    def __init__(
        self,
        backend: Backend,
        workload: Workload,
        test_settings: Any,
        library: int,
        folder: Path,
        args: argparse.Namespace,
        state: RunState,
    ) -> None:
        """`test_settings`: those of the run whose rate is wanted; they are changed for each test.
        `library`: LoadGen's handle of the samples.
        """
        self.limits = Limits(test_settings.ttft_latency / 1e9, test_settings.tpot_latency / 1e9)
        self.answered = 0  # requests
        self._backend = backend
        self._workload = workload
        self._settings = test_settings
        self._library = library
        self._folder = folder
        self._state = state
        self._fixed_s: float | None = args.probe_duration
        enough_s = TTFT_LIMITS * self.limits.ttft_s
        self._duration_s = self._fixed_s or enough_s
        self._queries: int = args.probe_queries
        self._run = {
            name: getattr(test_settings, name)
            for name in ("min_duration_ms", "min_query_count", "sample_concatenate_permutation")
        }
        self._tests = 0
        if self._duration_s < enough_s:
            log.warning(
                "probes of %g s may pass rates that are up to %.0f %% too high, as queues take time"
                " to grow: the default is %g s",
                self._duration_s,
                100 * self.limits.ttft_s / self._duration_s,
                enough_s,
            )

    async def probe(self, rate: float, length: float) -> Probe:
        """A test with arrivals at a rate, long enough for its load to be that of a long run.

        `length`: so many times as long as that.

        Raises: LoadGenError if the user's duration is not.
        """
        while True:
            probe = await self._server(rate, length)
            answer_s = probe.answer_s
            if not probe.within or answer_s is None:
                return probe
            if answer_s * (1 if self._fixed_s else ANSWERS) <= self._duration_s:
                return probe
            needed_s = math.ceil(ANSWERS * answer_s)
            if self._fixed_s:
                raise LoadGenError(
                    f"a probe of {self._fixed_s:g} s is shorter than an answer, which takes"
                    f" {answer_s:.1f} s on average: pass --probe-duration {needed_s} or more"
                )
            log.info("an answer takes %.1f s on average: probes now take %d s", answer_s, needed_s)
            self._duration_s = needed_s

    async def offline(self, rate: float) -> tuple[float, float, float]:
        """A test of so many samples as a rate needs.

        Returns the measured rate in samples/s, the seconds it took, and those it has to take.
        """
        self._set(offline_expected_qps=rate)
        if self._fixed_s:
            self._set(**self._short(self._fixed_s))
        needed_s = self._settings.min_duration_ms / 1e3
        with self._observed(rate) as (folder, journal, on_done):
            sut = Sut(self._backend, self._workload, journal, False, on_done)
            detail = await self._test(sut, folder)
        measured = report.performance_figures(detail)["samples_per_second"]
        return measured, sut.issued / measured, needed_s

    async def _server(self, rate: float, length: float) -> Probe:
        self._set(server_target_qps=rate, **self._run)
        full = settings.expected_samples(self._settings, len(self._workload))
        run_queries = max(full, early_stopping.fewest_queries(0))
        duration_s = length * self._duration_s
        self._set(**self._short(duration_s))
        expected = max(self._queries, rate * duration_s)
        meter = Meter(self.limits, expected, asyncio.get_running_loop().time)
        with self._observed(rate) as (folder, journal, on_done):

            def finish(completion: Completion) -> None:
                meter.finish(completion)
                on_done(completion)

            sut = ProbeSut(self._backend, self._workload, journal, meter, finish)
            detail = await self._test(sut, folder)
        late = (meter.late_first, meter.late_tokens)
        return judged(rate, None if sut.gave_up else detail, late, meter.arrived, run_queries)

    @contextmanager
    def _observed(
        self, rate: float
    ) -> Iterator[tuple[Path, Journal, Callable[[Completion], None]]]:
        """What a test with the present settings needs: a folder, a journal, and what to call with
        each answer, for the progress and the state file."""
        self._tests += 1
        folder = self._folder / f"{self._tests:02}"
        folder.mkdir(parents=True)
        expected = settings.expected_samples(self._settings, len(self._workload))
        self._state.enter("running", self.answered + expected)
        name = f"probe {self._tests}, {rate:.4g}/s"
        with Journal(folder / JOURNAL, {}) as journal, Progress(expected, name) as progress:

            def on_done(completion: Completion) -> None:
                progress.add(len(completion.token_ids))
                self._state.count()

            yield folder, journal, on_done

    async def _test(self, sut: Sut, folder: Path) -> report.DetailLog:
        """LoadGen's log of one test with the present settings."""
        settings.check_size(self._settings, len(self._workload))
        await sut.serve(loadgen_test(self._settings, self._library, folder))
        (folder / JOURNAL).unlink()  # written so that a probe has the work of a run
        self.answered += sut.issued
        return report.read_detail(folder / report.DETAIL_LOG)

    def _short(self, duration_s: float) -> dict[str, Any]:
        """Settings of a test that does not have to answer whole passes over the data set."""
        return {
            "min_duration_ms": round(duration_s * 1e3),
            "min_query_count": self._queries,
            "sample_concatenate_permutation": False,
        }

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            setattr(self._settings, name, value)
