"""What has come of a sweep's points, and which of them are best."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from errors import InputFileError
from mlperf.result_folder import ResultFolder, read
from mlperf.settings import MODES, benchmark
from mlperf.sweep.plan import Point

LATENCIES = ("ttft_p99_ms", "tpot_p99_ms")
# VALID is LoadGen's; within: the limits are kept, but it wants more queries; over: a limit is
# missed; broken: another rule is, such as by prefix caching, or its files are damaged
Verdict = Literal["VALID", "within", "over", "broken", "failed", "not run"]


def limit(mode: str, latency: str) -> float | None:
    """The benchmark's limit of a p99 in milliseconds, whatever the runs were told; None in Offline.

    Raises: LoadGenError.
    """
    return benchmark(MODES[mode]).get(f"{latency[:4]}_latency")


@dataclass(frozen=True)
class Result:
    """A point and what is on the disk of it."""

    point: Point

    @cached_property
    def folder(self) -> ResultFolder | None:
        """None if it was never run."""
        try:
            return read(self.point.folder)
        except InputFileError:
            return None

    @property
    def record(self) -> dict[str, Any]:
        """run.json of a run that finished; empty for others."""
        finished = self.folder is not None and self.folder.finished
        return (self.folder.record or {}) if self.folder and finished else {}

    @property
    def measured(self) -> bool:
        """Whether it has figures, so that it need not be run again."""
        return bool(self.record)

    @property
    def known_reasons(self) -> list[str]:
        """Why its run can't be submitted, as known before it started: it is short, for example."""
        return self.record.get("known_before_the_run", [])

    @property
    def problem(self) -> str:
        """Why it has no figures, or none to rely on."""
        if self.folder is None:
            return ""
        if not self.measured:
            return str((self.folder.state or {}).get("error") or "killed")
        reasons = self.record["not_submittable_because"]
        others = [one for one in reasons if one not in self.known_reasons]
        others = [one for one in others if not one.startswith("INVALID")]
        return "; ".join([*self.folder.faults, *others])

    def figure(self, name: str) -> float | None:
        """A figure of run.json by its name with unit."""
        return self.record["figures"].get(name) if self.measured else None

    @property
    def verdict(self) -> Verdict:
        if not self.measured:
            return "not run" if self.folder is None else "failed"
        if self.problem:
            return "broken"
        if not all(self._keeps(name) for name in LATENCIES):
            return "over"
        return "VALID" if self.record.get("loadgen_validity") == "VALID" else "within"

    def _keeps(self, latency: str) -> bool:
        most, value = limit(self.point.mode, latency), self.figure(latency)
        return most is None or (value is not None and value <= most)


def front(points: Sequence[tuple[float, float]]) -> set[int]:
    """The Pareto front of (throughput, latency): the positions of the points for which no other has
    as much throughput and as little latency, and more or less of one."""
    best: set[int] = set()
    least = float("inf")
    last: tuple[float, float] | None = None
    # from the highest throughput down, a point has to have less latency than all before it
    for position in sorted(range(len(points)), key=lambda i: (-points[i][0], points[i][1])):
        if points[position][1] < least or points[position] == last:
            best.add(position)
            least, last = points[position][1], points[position]
    return best


def on_front(results: Sequence[Result], latency: str) -> set[int]:
    """The positions of the results on the front of tokens/s and a latency.

    Offline measures no latency, so none of its points is.
    """
    values = [(one.figure("tokens_per_second"), one.figure(latency)) for one in results]
    places = [place for place, pair in enumerate(values) if None not in pair]
    pairs = [(tokens, ms) for tokens, ms in values if tokens is not None and ms is not None]
    return {places[position] for position in front(pairs)}


def best(results: Iterable[Result]) -> dict[str, Result]:
    """Of each scenario the legal point with most tokens/s: one that LoadGen calls VALID or, if it
    calls none so, one that keeps the limits."""
    winners: dict[str, Result] = {}
    order = {"within": 0, "VALID": 1}
    for result in results:
        if result.verdict in order:
            mode = result.point.mode
            current = winners.get(mode)
            if current is None or _rank(result, order) > _rank(current, order):
                winners[mode] = result
    return {mode: winners[mode] for mode in MODES if mode in winners}


def _rank(result: Result, order: dict[str, int]) -> tuple[int, float]:
    return order[result.verdict], result.figure("tokens_per_second") or 0.0
