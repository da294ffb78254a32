"""Grade many answers in parallel, on all cores, and yield each grade when it is done.

One answer never affects another: a timeout, or a process that can't be started, is the result of
that row only.
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
from grading.tasks.table import TASKS, Context, Judges, Lease

_AHEAD = 1  # threads beyond the number of workers: they prepare the next answers
_LIBRARIES = ("sympy", "pylatexenc", "mpmath")  # used by the rules

S = TypeVar("S")
T = TypeVar("T")


class Answers(Protocol):
    """Answers by row, which may be created on access."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> Answer: ...


def grade_all(
    answers: Answers,
    context: Context,
    workers: int | None = None,
    rows: Sequence[int] | None = None,
) -> Generator[Grade, None, None]:
    """Yield the grade of each answer, or of those at `rows`, when it is done.

    Answers are started in order. `workers`: answers graded in parallel, by default one per core.
    """
    selection = range(len(answers)) if rows is None else rows
    yield from each(
        lambda answer, lease: _grade(answer, lease, context),
        (answers[row] for row in selection),
        context.sandbox,
        lambda: Judges(context.sandbox),
        workers,
        lambda answer: not TASKS[answer.task].modules,
    )


def each(
    work: Callable[[S, Lease], T],
    items: Iterable[S],
    sandbox: Sandbox,
    make_worker: Callable[[], Any],
    workers: int | None = None,
    is_inline: Callable[[S], bool] = lambda item: False,
) -> Generator[T, None, None]:
    """Yield what `work` returns for each item, when it is done.

    `work` borrows a worker from its lease for the part that needs one; it runs in a few more
    threads than there are workers, so that no worker is idle while answers are prepared. Inline
    items need no worker and are worked on in the caller's thread. If the generator ends early, for
    whatever reason, the sandbox's processes are killed.
    """
    count = workers or len(os.sched_getaffinity(0))
    all_workers = [make_worker() for _ in range(count)]
    idle: SimpleQueue[Any] = SimpleQueue()
    for worker in all_workers:
        idle.put(worker)
    pool = ThreadPoolExecutor(count + _AHEAD, thread_name_prefix="grade")
    futures: list[Future[T]] = []
    done: SimpleQueue[Future[T]] = SimpleQueue()
    count_yielded = 0
    try:
        for item in items:
            if is_inline(item):
                yield work(item, Lease(idle))
            else:
                futures.append(pool.submit(work, item, Lease(idle)))
                futures[-1].add_done_callback(done.put)
            while not done.empty():
                count_yielded += 1
                yield done.get().result()
        for _ in range(count_yielded, len(futures)):
            yield done.get().result()
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        while not all(future.done() for future in futures):
            sandbox.end_all()
            time.sleep(0.02)  # a process may be starting right now
        raise
    finally:
        pool.shutdown()
        for worker in all_workers:
            worker.close()


def content_hash(answer: Answer, context: Context) -> str:
    """A hash of everything a grade depends on: answer, truth, tests, rules, limits, grader version.

    In hexadecimal. Equal hashes mean equal grades.
    """
    parts: list[object] = [grader_version(), answer.task, type(answer.ground_truth).__name__]
    parts.append(answer.ground_truth)
    parts += TASKS[answer.task].inputs(answer, context)
    digest = hashlib.sha256(repr(parts).encode(errors="surrogatepass"))
    digest.update(b"\0" + answer.text.encode(errors="surrogatepass"))
    return digest.hexdigest()


@cache
def grader_version() -> str:
    """A hash of the rules' source files and the versions of their libraries, in hexadecimal."""
    from importlib import metadata  # slow to import, and --help does not need it

    digest = hashlib.sha256()
    here = Path(__file__)
    schema = here.parents[1] / "data" / "livecodebench.py"  # decodes the tests
    for path in (here, schema, *sorted((here.parent / "tasks").glob("*.py"))):
        digest.update(path.read_bytes())
    digest.update(repr([metadata.version(name) for name in _LIBRARIES]).encode())
    return digest.hexdigest()


def _grade(answer: Answer, lease: Lease, context: Context) -> Grade:
    start = time.perf_counter()
    extraction = TASKS[answer.task].extract(answer.text.strip())
    extracted, rule = extraction or (None, "no answer")
    detail = None
    status: Status
    if extraction is None:
        status = "no_answer"
    else:
        try:
            verdict = _judge(extracted, answer, lease, context)
            status = "ok" if verdict.right else "timeout" if verdict.too_slow else "wrong"
            rule = f"{rule}, {verdict.rule}"
        except TimeLimit as error:
            status, detail = "timeout", str(error)
        except SandboxError as error:
            status, detail = "sandbox_error", str(error)
        except GradingError as error:
            status, detail = "not_graded", str(error)
    seconds = time.perf_counter() - start - lease.waited
    return Grade(answer.sample_index, extracted, status, rule, seconds, detail)


def _judge(extracted: Any, answer: Answer, lease: Lease, context: Context) -> Verdict:
    """Raises: TimeLimit, SandboxError; GradingError if the sandbox or a problem is missing."""
    task, truth = TASKS[answer.task], answer.ground_truth
    if truth is None:
        return Verdict(False, "no truth")
    # by the public rules, an empty text is never right, nor is any text if the truth is empty; a
    # number may be 0
    if isinstance(extracted, str):
        if not extracted:
            return Verdict(False, "empty answer")
        if not truth:
            return Verdict(False, "empty truth")
    if task.modules and context.sandbox.level is None:
        raise GradingError(f"no sandbox level holds: {context.sandbox.reason}")
    return task.judge(extracted, answer, context, lease)
