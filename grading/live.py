"""Progress of grading: on a terminal a screen with a row a task, log lines elsewhere."""

import contextlib
import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Self, get_args

from data.progress import EVERY_S, Progress, clock
from data.screen import Line, Screen, bar, framed, table
from grading.tasks import Grade, Status
from grading.tasks.table import TASKS

if TYPE_CHECKING:
    from rich.console import RenderableType

ALL = "all"


class GradingView:
    """Counts grades while it is open."""

    def __init__(self, enabled: bool, tasks: Sequence[str], earlier: dict[int, Grade]) -> None:
        """`enabled`: whether there may be a screen. `tasks`: of all rows. `earlier`: grades of an
        earlier run, by row."""
        self._tasks = tasks
        self._totals = Counter(tasks)
        # with all statuses, since another thread iterates over these
        nothing = dict.fromkeys(get_args(Status), 0)
        self._statuses = {task: Counter(nothing) for task in TASKS if task in self._totals}
        for row, grade in earlier.items():
            self._statuses[tasks[row]][grade.status] += 1
        self._begin_s = time.monotonic()
        self._screen = Screen(enabled, self.content)
        self._lines = {
            task: Progress(total, task, "row", math.inf if self._screen.shown else EVERY_S, False)
            for task, counts in self._statuses.items()
            if (total := self._totals[task] - counts.total())
        }
        self._stack = contextlib.ExitStack()

    def add(self, grade: Grade) -> None:
        """One more row is graded."""
        task = self._tasks[grade.sample_index]
        self._statuses[task][grade.status] += 1
        self._lines[task].add()

    def __enter__(self) -> Self:
        for progress in self._lines.values():
            self._stack.enter_context(progress)
        self._stack.enter_context(self._screen)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def content(self) -> "RenderableType":
        """What is on the screen."""
        seconds = time.monotonic() - self._begin_s
        warnings = [("warning", warning) for warning in [*self._screen.warnings]]
        return framed(f"grading, scores so far: {clock(seconds)}", table(self._rows(), warnings))

    def _rows(self) -> Iterator[Line]:
        yield "", "graded", "score", "no answer", "timeout", "not judged", ""
        everything = Counter[str]()
        for task, counts in self._statuses.items():
            everything.update(counts)
            yield _row(task, counts, self._totals[task])
        yield _row(ALL, everything, len(self._tasks))


def _row(task: str, counts: Counter[str], total: int) -> Line:
    done = counts.total()
    score = f"{100 * counts['ok'] / done:.2f} %" if done else ""
    unjudged = counts["sandbox_error"] + counts["not_graded"]
    others = (counts["no_answer"], counts["timeout"], unjudged)
    shown = (f"{count:,}" for count in others)
    return task, f"{done:,} of {total:,}", score, *shown, bar(done, total)
