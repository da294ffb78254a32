"""Grading many answers at once: each task's rules, over all cores, each grade as it comes.

One answer never costs another. What is slow is killed after its time, and what needs a process
that can't be had is said to be ungraded; both concern that row alone.
"""

import hashlib
import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol, TypeVar

from errors import GradingError
from grading.sandbox.inside.limits import Limits
from grading.sandbox.sandbox import Sandbox
from grading.sandbox.types import SandboxError, TimeLimit
from grading.tasks import Answer, Grade, Status, Verdict, aime, choice, livecodebench, math500
from grading.tasks.worker import Worker

MATH_LIMIT_S = 5.0  # the slowest realistic pair of 844 took 0.12 s
MATH_LIMITS = Limits(memory=1 << 30)
# Tasks whose answers are judged by confined processes, and the modules these serve
SERVED = {
    "livecodebench": ("grading.tasks.program", "grading.tasks.outputs"),
    "math500": ("grading.tasks.math500",),
}
_AHEAD = 1  # answers begun beyond those that have a worker
_LIBRARIES = ("sympy", "pylatexenc", "mpmath")  # that the rules are built on

S = TypeVar("S")
T = TypeVar("T")


@dataclass(frozen=True)
class Rules:
    """What may be chosen about grading."""

    code_limit: float = livecodebench.TIME_LIMIT_S  # seconds a program may load, and take a test
    mode: livecodebench.Mode = "reference"  # how a program's standard input is made

    @property
    def unofficial(self) -> str:
        """The options by which these are not the official rules; "" where they are."""
        limit = f"--time-limit {self.code_limit:g}"
        return " ".join(
            option
            for option, changed in (
                (f"--lcb-mode {self.mode}", self.mode != "reference"),
                (limit, self.code_limit != livecodebench.TIME_LIMIT_S),
            )
            if changed
        )


class MathWorker:
    """Compares formulas in a confined process."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._worker = Worker(sandbox, "grading.tasks.math500", MATH_LIMITS)

    def judge(self, given: str, truth: str) -> Verdict:
        """Errors: TimeLimit, SandboxError; see `Worker`."""
        reply = self._worker.ask({"answer": given, "truth": truth}, MATH_LIMIT_S)
        return Verdict(reply.get("right") is True, str(reply.get("rule")))

    def forms(self, formula: str) -> dict[str, str]:
        """A formula's spellings that are compared, by whose they are. Errors: as of `judge`."""
        return self._worker.ask({"forms": formula}, MATH_LIMIT_S)

    def close(self) -> None:
        """Kill the process, if there is one."""
        self._worker.close()


class Judges:
    """The confined processes that compare answers; each is there from when it is needed first."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.formulas = MathWorker(sandbox)
        self.outputs = livecodebench.Comparer(sandbox)

    def close(self) -> None:
        """Kill the processes that there are."""
        self.formulas.close()
        self.outputs.close()


class Turn:
    """One of the workers, once one is free, for as long as this is entered."""

    def __init__(self, free: SimpleQueue[Any]) -> None:
        self.waited = 0.0  # seconds
        self._free = free

    @contextmanager
    def taken(self) -> Iterator[Any]:
        """The worker."""
        began = time.perf_counter()
        worker = self._free.get()
        self.waited += time.perf_counter() - began
        try:
            yield worker
        finally:
            self._free.put(worker)


class Answers(Protocol):
    """Answers by row; they may be made when they are asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> Answer: ...


def grade_all(
    answers: Answers,
    problems: livecodebench.Problems | None,
    sandbox: Sandbox,
    rules: Rules = Rules(),
    workers: int | None = None,
    rows: Sequence[int] | None = None,
) -> Generator[Grade, None, None]:
    """The grade of each answer, or of those at `rows`, as it comes; in that order they begin.

    `problems` may be None where no answer is LiveCodeBench's. `workers`: answers graded at once, by
    default one a core.
    """
    everything = range(len(answers)) if rows is None else rows
    yield from each(
        lambda answer, turn: _grade(answer, turn, problems, sandbox, rules),
        (answers[row] for row in everything),
        sandbox,
        lambda: Judges(sandbox),
        workers,
        lambda answer: answer.task not in SERVED,
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


def content_hash(
    answer: Answer, problems: livecodebench.Problems | None, rules: Rules = Rules()
) -> str:
    """A name for all that a grade depends on: answer, truth, tests, rules, limits and the grader.

    Two runs that agree in it agree in the grade. Hexadecimal.
    """
    parts: list[object] = [grader_version(), answer.task, type(answer.ground_truth).__name__]
    parts.append(answer.ground_truth)
    if answer.task == "math500":
        parts += [MATH_LIMIT_S, MATH_LIMITS]
    if answer.task == "livecodebench":
        truth = str(answer.ground_truth)
        known = problems is not None and truth in problems
        parts += [rules, problems.digest(truth) if problems and known else None]
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


def extract(task: str, text: str) -> tuple[str | int, str] | None:
    """The answer in a text as its task's rules find it, and the name of the rule that did."""
    text = text.strip()
    if task == "aime":
        return aime.extract(text)
    if task == "math500":
        return math500.extract(text)
    if task == "livecodebench":
        return livecodebench.extract(text)
    return choice.extract(text, task)


def _grade(
    answer: Answer,
    turn: Turn,
    problems: livecodebench.Problems | None,
    sandbox: Sandbox,
    rules: Rules,
) -> Grade:
    start = time.perf_counter()
    found = extract(answer.task, answer.text)
    extracted, how = found or (None, "no answer")
    detail = None
    status: Status
    if found is None:
        status = "no_answer"
    else:
        try:
            verdict = _judge(extracted, answer, turn, problems, sandbox, rules)
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


def _judge(
    extracted: Any,
    answer: Answer,
    turn: Turn,
    problems: livecodebench.Problems | None,
    sandbox: Sandbox,
    rules: Rules,
) -> Verdict:
    """Errors: TimeLimit, SandboxError; GradingError where a process or a problem is missing."""
    truth = answer.ground_truth
    if truth is None:
        return Verdict(False, "no truth")
    if answer.task == "aime":
        return aime.judge(extracted, truth)
    # an empty answer is never right, nor is any to an empty truth
    if not extracted:
        return Verdict(False, "empty answer")
    if not truth:
        return Verdict(False, "empty truth")
    if answer.task not in SERVED:
        return choice.judge(extracted, truth)
    if sandbox.level is None:
        raise GradingError(f"there is no sandbox: {sandbox.reason}")
    if answer.task == "math500":
        with turn.taken() as judges:
            verdict: Verdict = judges.formulas.judge(extracted, str(truth))
        return verdict
    if problems is None:
        raise GradingError("there are no problems to test programs with")
    problem = problems.read(str(truth))
    return livecodebench.passes(
        extracted, problem, sandbox, rules.code_limit, rules.mode, turn=_comparer(turn)
    )


@contextmanager
def _comparer(turn: Turn) -> Iterator[livecodebench.Comparer]:
    with turn.taken() as judges:
        yield judges.outputs
