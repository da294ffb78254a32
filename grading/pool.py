"""Grading many answers at once: each task's rules, over all cores, each grade as it comes.

One answer never costs another. What is slow is killed after its time, and what needs a process
that can't be had is said to be ungraded; both concern that row alone.
"""

import hashlib
import os
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol, TypeVar

from errors import GradingError
from grading.sandbox.sandbox import Sandbox
from grading.sandbox.types import SandboxError, TimeLimit
from grading.tasks import Answer, Grade, Status, Verdict
from grading.tasks.table import TASKS, Context, Judges, Turn

_AHEAD = 1  # answers begun beyond those that have a worker
_LIBRARIES = ("sympy", "pylatexenc", "mpmath")  # that the rules are built on

S = TypeVar("S")
T = TypeVar("T")


class Answers(Protocol):
    """Answers by row; they may be made when they are asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> Answer: ...


def grade_all(
    answers: Answers,
    context: Context,
    workers: int | None = None,
    rows: Sequence[int] | None = None,
) -> Generator[Grade, None, None]:
    """The grade of each answer, or of those at `rows`, as it comes; in that order they begin.

    `workers`: answers graded at once, by default one a core.
    """
    everything = range(len(answers)) if rows is None else rows
    yield from each(
        lambda answer, turn: _grade(answer, turn, context),
        (answers[row] for row in everything),
        context.sandbox,
        lambda: Judges(context.sandbox),
        workers,
        lambda answer: not TASKS[answer.task].modules,
    )


def each(
    work: Callable[[S, Turn], T],
    items: Iterable[S],
    sandbox: Sandbox,
    make_worker: Callable[[], Any],
    workers: int | None = None,
    at_once: Callable[[S], bool] = lambda item: False,
) -> Generator[T, None, None]:
    """What `work` returns for each item, as it comes.

    What it does while it has its turn is done for as many items at once as there are workers; it
    may be called for some more, so that no worker waits for what comes before and after that.
    Items that are done `at_once` need no worker, and are worked on between what the others give.
    When this ends early, for whatever reason, so do the sandbox's processes.
    """
    count = workers or len(os.sched_getaffinity(0))
    made = [make_worker() for _ in range(count)]
    free: SimpleQueue[Any] = SimpleQueue()
    for worker in made:
        free.put(worker)
    pool = ThreadPoolExecutor(count + _AHEAD, thread_name_prefix="grade")
    futures: list[Future[T]] = []
    done: SimpleQueue[Future[T]] = SimpleQueue()
    given = 0
    try:
        for item in items:
            if at_once(item):
                yield work(item, Turn(free))
            else:
                futures.append(pool.submit(work, item, Turn(free)))
                futures[-1].add_done_callback(done.put)
            while not done.empty():
                given += 1
                yield done.get().result()
        for _ in range(given, len(futures)):
            yield done.get().result()
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        while not all(future.done() for future in futures):
            sandbox.end_all()
            time.sleep(0.02)  # a process may just be starting
        raise
    finally:
        pool.shutdown()
        for worker in made:
            worker.close()


def content_hash(answer: Answer, context: Context) -> str:
    """A name for all that a grade depends on: answer, truth, tests, rules, limits and the grader.

    Two runs that agree in it agree in the grade. Hexadecimal.
    """
    parts: list[object] = [grader_version(), answer.task, type(answer.ground_truth).__name__]
    parts.append(answer.ground_truth)
    parts += TASKS[answer.task].inputs(answer, context)
    digest = hashlib.sha256(repr(parts).encode(errors="surrogatepass"))
    digest.update(b"\0" + answer.text.encode(errors="surrogatepass"))
    return digest.hexdigest()


@cache
def grader_version() -> str:
    """A hash of the rules' own text and of the versions of what they are built on. Hexadecimal."""
    from importlib import metadata  # takes a while, and --help needs none of it

    digest = hashlib.sha256()
    here = Path(__file__)
    for path in (here, *sorted((here.parent / "tasks").glob("*.py"))):
        digest.update(path.read_bytes())
    digest.update(repr([metadata.version(name) for name in _LIBRARIES]).encode())
    return digest.hexdigest()


def _grade(answer: Answer, turn: Turn, context: Context) -> Grade:
    start = time.perf_counter()
    found = TASKS[answer.task].extract(answer.text.strip())
    extracted, how = found or (None, "no answer")
    detail = None
    status: Status
    if found is None:
        status = "no_answer"
    else:
        try:
            verdict = _judge(extracted, answer, turn, context)
            status = "ok" if verdict.right else "timeout" if verdict.too_slow else "wrong"
            how = f"{how}, {verdict.rule}"
        except TimeLimit as error:
            status, detail = "timeout", str(error)
        except SandboxError as error:
            status, detail = "sandbox_error", str(error)
        except GradingError as error:
            status, detail = "not_graded", str(error)
    seconds = time.perf_counter() - start - turn.waited
    return Grade(answer.sample_index, extracted, status, how, seconds, detail)


def _judge(extracted: Any, answer: Answer, turn: Turn, context: Context) -> Verdict:
    """Raises: TimeLimit, SandboxError; GradingError where a process or a problem is missing."""
    task, truth = TASKS[answer.task], answer.ground_truth
    if truth is None:
        return Verdict(False, "no truth")
    # an empty text is never right, nor is any to an empty truth; 0 is a number like others
    if isinstance(extracted, str):
        if not extracted:
            return Verdict(False, "empty answer")
        if not truth:
            return Verdict(False, "empty truth")
    if task.modules and context.sandbox.level is None:
        raise GradingError(f"there is no sandbox: {context.sandbox.reason}")
    return task.judge(extracted, answer, context, turn)
