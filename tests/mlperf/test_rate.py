"""The rate search: alone, on the echo engine in virtual time, and with LoadGen itself."""

import asyncio
import heapq
import json
import math
import random
from array import array
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from backends.drive import cancel, collect
from backends.echo import EchoEngine
from backends.types import TOKEN, Completion, Delta, EngineConfig, Request
from errors import LoadGenError
from mlperf import rate, report, settings, user_conf
from mlperf.early_stopping import late_allowed
from mlperf.probe import Limits, Meter, Probe, judged
from mlperf.state import STATE
from tests.effort import cases

if TYPE_CHECKING:
    from tests.conftest import Script

ROWS = 4388
LIMITS = Limits(ttft_s=2.0, tpot_s=0.08)
PROBE_S = 120.0
QUERIES = 300


def at(rate_: float, passes: bool) -> Probe:
    return Probe(rate_, 300, 1.0, 1.0, 0, 0, 1.0, passes, ROWS, float(passes))


@pytest.mark.parametrize("start", [0.3, 1.0, 2.99, 3.01, 100.0])
@pytest.mark.parametrize(("tolerance", "luck"), [(0.5, 0), (0.03, 0), (0.001, 0), (0.03, 0.4)])
def test_a_search_ends_around_the_limit(start: float, tolerance: float, luck: float) -> None:
    """`luck`: by how much short probes pass above the limit."""
    probes: list[Probe] = []

    async def measure(rate_: float, length: float) -> Probe:
        probes.append(at(rate_, rate_ <= 3 + (length == 1) * luck))
        return probes[-1]

    result = asyncio.run(rate.search(measure, start, tolerance))
    assert result.passed.rate <= 3 < result.failed.rate <= result.passed.rate * (1 + tolerance)
    assert {result.passed, result.failed} <= set(probes)
    assert len(probes) < 20


def test_a_search_in_which_every_rate_fails_ends_with_its_figures() -> None:
    async def measure(rate_: float, length: float) -> Probe:
        return at(rate_, passes=False)

    with pytest.raises(LoadGenError, match=r"even 0.0156\d* samples/s .* TTFT is 1.0 ms"):
        asyncio.run(rate.search(measure, 1, 0.03))


def test_a_rate_that_no_long_probe_confirms_is_none() -> None:
    async def measure(rate_: float, length: float) -> Probe:
        return at(rate_, passes=length == 1 and rate_ < 3)

    with pytest.raises(LoadGenError, match=r"2.9\d+ samples/s passed .* but 2.2\d+ failed"):
        asyncio.run(rate.search(measure, 1, 0.03))


@pytest.mark.parametrize(
    ("rate_", "expected"), [(3.21987, 3.219), (12345.6, 12340), (0.5, 0.5), (160.0, 160)]
)
def test_rates_are_rounded_down(rate_: float, expected: float) -> None:
    assert rate.rounded(rate_) == expected


def test_a_meter_takes_latencies_and_gives_up_in_time() -> None:
    now = 0.0
    meter = Meter(LIMITS, 300, lambda: now)
    for request in range(3):
        meter.arrive(request)
    now = 1.9
    meter.start(0)
    now = 2.1
    meter.start(1)
    assert not meter.hopeless
    assert meter.late_first == 2  # of the third, no token is there yet
    meter.start(2)
    assert meter.late_first == 2
    now = 1.9 + 2 * 0.09
    meter.finish(Completion(0, array(TOKEN, [5, 6, 7]), "stop", 0, 0))
    meter.finish(Completion(1, array(TOKEN, [5]), "stop", 0, 0))  # has no TPOT
    meter.finish(Completion(2, array(TOKEN, range(9)), "stop", 0, 0))
    assert meter.late_tokens == 1
    for request in range(3, 6):
        meter.arrive(request)
    now += 2.1
    assert meter.hopeless


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer instead of waiting for it."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._select = self._selector.select  # type: ignore[attr-defined]
        self._selector.select = self._jump  # type: ignore[attr-defined]

    def time(self) -> float:
        return self._now

    def _jump(self, timeout: float | None) -> Any:
        self._now += timeout or 0
        return self._select(0)


class Trial:
    """An engine of a number of slots, each of which answers a request in the same time.

    What limits its rate is TTFT: requests wait for a slot.
    """

    probe_s = PROBE_S

    def __init__(self, seed: int) -> None:
        draw = random.Random(seed)
        self._draw = draw
        self._slots = draw.randint(8, 16)
        self._first_s = draw.uniform(0.25, 0.55)
        self._second_s = draw.uniform(0.01, 0.07)  # within the limit of TPOT
        self._start = draw.uniform(0.05, 4)

    @property
    def start(self) -> float:
        """The rate at which the search begins, in requests/s."""
        return self.capacity * self._start

    @property
    def options(self) -> dict[str, float]:
        """The echo engine's."""
        return {
            "slots": self._slots,
            "first_token_ms": self._first_s * 1e3,
            "token_ms": self._second_s * 1e3,
        }

    @property
    def capacity(self) -> float:
        """Requests/s that all slots can answer."""
        return self._slots / (self._first_s + self._second_s)

    def limit(self) -> float:
        """The highest rate at which not too many requests of a long run are late."""
        low, high = 0.5 * self.capacity, self.capacity
        while high > low * 1.002:
            middle = (low + high) / 2
            run = max(ROWS, round(600 * middle))
            share = ((late_allowed(run) or 0) + 0.5) / run
            low, high = (low, middle) if self._late(middle) > share else (middle, high)
            low, high = sorted((low, high))
        return low

    def _late(self, rate_: float, queries: int = 60_000) -> float:
        """The share of requests with a late first token, without an engine: by queueing theory."""
        rng = random.Random(99)
        free = [0.0] * self._slots  # when each slot is free
        now, late = 0.0, 0
        for _ in range(queries):
            now += rng.expovariate(rate_)
            begin = max(now, free[0])
            heapq.heapreplace(free, begin + self._first_s + self._second_s)
            late += begin + self._first_s - now > LIMITS.ttft_s
        return late / queries

    async def find(self) -> float:
        """The rate that the search finds."""
        result = await rate.search(self._probe, self.start, rate.TOLERANCE)
        return result.passed.rate

    async def _probe(self, rate_: float, length: float) -> Probe:
        options = {name: str(value) for name, value in self.options.items()}
        engine = EchoEngine(EngineConfig("nowhere", options=options))
        loop = asyncio.get_running_loop()
        duration_s = length * self.probe_s
        meter = Meter(LIMITS, max(QUERIES, rate_ * duration_s), loop.time)
        ttfts, tpots, answers_s = [], [], []

        async def answer(number: int) -> None:
            arrival = first = loop.time()

            def on_first(request: Request, delta: Delta) -> None:
                nonlocal first
                first = loop.time()
                meter.start(number)
                ttfts.append(first - arrival)

            request = Request(number, (5, 6), 9, frozenset())
            completion = await collect(engine, request, on_first)
            meter.finish(completion)
            answers_s.append(loop.time() - arrival)
            tpots.append(loop.time() - first)  # there are two tokens

        rng = random.Random(self._draw.random())  # not the random numbers of the last probe
        end = loop.time() + duration_s
        tasks: list[asyncio.Task[None]] = []
        run = max(ROWS, round(600 * rate_))
        while (loop.time() < end or len(tasks) < QUERIES) and not meter.hopeless:
            meter.arrive(len(tasks))
            tasks.append(asyncio.create_task(answer(len(tasks))))
            await asyncio.sleep(rng.expovariate(rate_))
        if meter.hopeless:
            await cancel(tasks)
            late = (meter.late_first, meter.late_tokens)
            return judged(rate_, None, late, meter.arrived, run)
        await asyncio.gather(*tasks)
        place = int(len(tasks) * 0.99)
        values = {
            "result_first_token_50.00_percentile_latency_ns": 0,
            "result_first_token_99.00_percentile_latency_ns": sorted(ttfts)[place] * 1e9,
            "result_time_per_output_token_50.00_percentile_ns": 0,
            "result_time_per_output_token_99.00_percentile_ns": sorted(tpots)[place] * 1e9,
            "requested_server_ttft_latency": LIMITS.ttft_s * 1e9,
            "requested_server_tpot_latency": LIMITS.tpot_s * 1e9,
            "result_mean_latency_ns": sum(answers_s) / len(answers_s) * 1e9,
        }
        late = (meter.late_first, meter.late_tokens)
        return judged(rate_, report.DetailLog(values, {}), late, meter.arrived, run)


class TokenTrial(Trial):
    """An engine that takes all requests at once, and answers more slowly the more there are.

    What limits its rate is TPOT.
    """

    probe_s = 40.0

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        most = self._draw.uniform(50, 70)  # requests at once within the limit of TPOT
        self._second_s = self._draw.uniform(0.01, 0.03)
        self._load_s = (LIMITS.tpot_s - self._second_s) / most
        self._capacity = most / (self._first_s + LIMITS.tpot_s)

    @property
    def options(self) -> dict[str, float]:
        return {
            "first_token_ms": self._first_s * 1e3,
            "token_ms": self._second_s * 1e3,
            "load_ms": self._load_s * 1e3,
        }

    @property
    def capacity(self) -> float:
        return self._capacity

    def _late(self, rate_: float, queries: int = 60_000) -> float:
        """The share of requests with late tokens."""
        rng = random.Random(99)
        arrivals: deque[float] = deque()  # of requests without a first token
        ends: list[float] = []  # of the others
        now, late = 0.0, 0
        for _ in range(queries):
            now += rng.expovariate(rate_)
            while arrivals and arrivals[0] + self._first_s <= now:
                first = arrivals.popleft() + self._first_s
                while ends and ends[0] <= first:
                    heapq.heappop(ends)
                running = 1 + len(arrivals) + len(ends)
                second_s = self._second_s + self._load_s * running
                heapq.heappush(ends, first + second_s)
                late += second_s > LIMITS.tpot_s
            arrivals.append(now)
        return late / queries


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "seed"),
    [
        *((Trial, seed) for seed in range(cases(6, 20))),
        *((TokenTrial, seed) for seed in range(cases(2, 20))),
    ],
)
def test_the_rate_found_is_within_5_percent_of_the_true_limit(kind: type[Trial], seed: int) -> None:
    trial = kind(seed)
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        result = runner.run(trial.find())
    assert result == pytest.approx(trial.limit(), rel=0.05)


ECHO = ("run_mlperf.py", "--find-target-qps")
SLOTS = [  # 400 requests/s
    *("--engine-arg", "slots=10", "--engine-arg", "first_token_ms=5"),
    *("--engine-arg", "token_ms=5", "--engine-arg", "answer_tokens=5"),
]


@pytest.mark.slow
def test_a_search_with_loadgen_writes_the_rate(
    script: "Script", data_set: Callable[[int], Path]
) -> None:
    conf = script.folder / "mine.conf"
    conf.write_text("# mine\ndeepseek-r1.Offline.target_qps = 7\n*.Server.ttft_latency = 300\n")
    new = script.folder / "new.conf"
    code, out, err = script.run(
        *ECHO, "--mode", "server", "--input-file", data_set(50), *SLOTS, "--target-qps", 100,
        *("--probe-duration", 0.5, "--probe-queries", 100, "--rate-tolerance", 0.9),
        *("--user-conf", conf, "--write-user-conf", new),
    )  # fmt: skip
    assert code == 0, err
    folder = script.folder / "mlperf_results" / "server" / "rate"
    record = json.loads((folder / "rate.json").read_text())
    target = record["target_qps"]
    assert record["passed"]["rate"] == pytest.approx(target, rel=1e-3)
    assert 1 < record["failed"]["rate"] / target < 1.91
    rows = [line.split() for line in out.splitlines() if line.endswith(("  passes", "  fails"))]
    probes = sorted((folder / "probes").iterdir())
    assert len(rows) == len(probes) >= 2
    assert not list(folder.rglob("*.journal"))
    for row, probe in zip(rows, probes, strict=True):
        values = report.read_detail(probe / report.DETAIL_LOG).values
        assert float(row[0]) == pytest.approx(values["effective_target_qps"], rel=1e-3)
        assert values["effective_sample_concatenate_permutation"] is False
        assert values["effective_min_duration_ms"] in (500, 1500)
        if row[-1] == "passes":
            p99_ms = values["result_first_token_99.00_percentile_latency_ns"] / 1e6
            assert float(row[2]) == pytest.approx(p99_ms, abs=0.1)
            assert p99_ms <= 300
    assert "VALID with a probability of" in out
    assert "may pass rates that are up to 60 % too high" in err
    mode = settings.MODES["server"]
    assert new.read_text() == f"{conf.read_text()}deepseek-r1.Server.target_qps = {target:g}\n"
    wanted = settings.read_user_conf(new).settings(mode.model, mode.scenario)
    assert wanted["server_target_qps"] == pytest.approx(target)


def test_all_probes_have_one_engine(script: "Script", data_set: Callable[[int], Path]) -> None:
    code, out, err = script.run(
        *ECHO, "--mode", "interactive", "--input-file", data_set(20), "--target-qps", 500,
        *("--probe-duration", 0.1, "--probe-queries", 100, "--engine-arg", "fail_at=150"),
    )  # fmt: skip
    assert code == 12, err
    assert "told to fail at request 150" in err  # the engine counts those of all probes
    assert len([line for line in out.splitlines() if line.endswith("passes")]) == 1
    folder = script.folder / "mlperf_results" / "interactive" / "rate"
    state = json.loads((folder / STATE).read_text())
    assert state["state"] == "failed"
    assert 100 <= state["finished"] < state["of"]


@pytest.mark.parametrize(
    ("options", "code", "word"),
    [
        (("--engine-arg", "token_ms=100"), 14, "one at a time, TTFT is"),
        (("--engine-arg", "token_ms=40", "--probe-duration", "0.1"), 14, "shorter than an answer"),
        (("--accuracy",), 2, "not allowed with argument"),
        (("--compliance",), 2, "not allowed with argument"),
        (("--probe-queries", "99"), 2, "must be 100 to"),
        (("--probe-duration", "0"), 2, "must be above 0"),
        (("--rate-tolerance", "1"), 2, "below 1"),
        (("--write-user-conf", "no.conf"), 14, "no.conf: line 1"),
        (("--write-user-conf", "missing/a.conf/b"), 11, "missing"),
    ],
)
def test_what_can_not_be_found_is_an_error(
    script: "Script",
    data_set: Callable[[int], Path],
    options: tuple[str, ...],
    code: int,
    word: str,
) -> None:
    (script.folder / "no.conf").write_text("something else\n")
    (script.folder / "missing").write_text("")
    answer = ("--probe-queries", 100, "--engine-arg", "answer_tokens=5", "--target-qps", 1000)
    run = (*ECHO, "--mode", "server", "--input-file", data_set(20), *answer)
    status, _, err = script.run(*run, *options)
    assert status == code, err
    assert word in err.splitlines()[-1]
    assert "Traceback" not in err


def test_the_other_options_need_the_search(
    script: "Script", data_set: Callable[[int], Path]
) -> None:
    code, _, err = script.run(
        "run_mlperf.py", "--input-file", data_set(3), "--write-user-conf", "new.conf"
    )
    assert code == 2
    assert "--write-user-conf needs --find-target-qps" in err


def test_offline_is_measured_until_it_lasts(
    script: "Script", data_set: Callable[[int], Path]
) -> None:
    conf = script.folder / "user.conf"
    conf.write_text("deepseek-r1.Offline.target_qps = 5\n")
    code, out, err = script.run(
        *ECHO, "--input-file", data_set(20), *SLOTS, "--engine-arg", "first_token_ms=10",
        *("--probe-duration", 0.5, "--probe-queries", 100),
        *("--user-conf", conf, "--write-user-conf", conf),
    )  # fmt: skip
    assert code == 0, err
    lines = [line.split() for line in out.splitlines() if " samples/s for " in line]
    lasted = [float(line[3]) for line in lines]
    assert "probe 1, 5/s: 100 of 100 samples" in err
    state = json.loads((script.folder / "mlperf_results" / "offline" / "rate" / STATE).read_text())
    assert state["state"] == "done"
    assert state["finished"] == state["of"] >= 100 * len(lines)
    assert len(lines) >= 2
    assert lasted[-1] >= 0.5 > lasted[0]
    target = user_conf.read_lines(conf)[0].value
    assert float(target) == pytest.approx(float(lines[-1][0]), rel=1e-3)
    assert math.isclose(float(target), 10 / 0.030, rel_tol=0.6)  # 10 slots, 30 ms an answer
