"""Grading many answers at once: each task's rules, over all cores, in the order of the answers."""

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from queue import SimpleQueue
from typing import Any

from data.sandbox import Confined, Ended, Limits, Sandbox, SandboxError, TimeLimit
from data.tasks import Answer, Grade, aime, choice, livecodebench, math500
from ref_dsinfer.errors import GradingError

MATH_LIMIT_S = 5.0  # the slowest realistic pair of 844 took 0.12 s
MATH_LIMITS = Limits(memory=1 << 30)


class MathWorker:
    """One confined process that compares formulas; a fresh one after any that had to be killed."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._process: Confined | None = None

    def equal(self, given: str, truth: str) -> bool:
        """Errors: GradingError where the comparison takes too long, or too much memory."""
        if self._process is None:
            self._process = self._sandbox.start("data.tasks.math500", MATH_LIMITS)
        try:
            reply = self._process.ask({"given": given, "truth": truth}, MATH_LIMIT_S)
        except TimeLimit as error:
            self.close()
            raise GradingError(f"timeout: comparing took over {MATH_LIMIT_S:g} s") from error
        except Ended as error:
            self.close()
            raise GradingError(f"comparing failed: {error}") from error
        if "error" in reply:
            self.close()
            raise GradingError(f"comparing failed: {reply['error']}")
        return bool(reply["right"])

    def close(self) -> None:
        """Kill the process, if there is one."""
        if self._process is not None:
            self._process.close()
            self._process = None


def grade_all(
    answers: Sequence[Answer],
    problems: livecodebench.Problems | None,
    sandbox: Sandbox,
    code_limit: float = livecodebench.TIME_LIMIT_S,
    workers: int | None = None,
    on_done: Callable[[Grade], None] = lambda grade: None,
) -> list[Grade]:
    """A grade an answer, in order. `problems` may be None where no answer is LiveCodeBench's.

    `code_limit`: seconds a program may take for loading, and for each test. `workers`: answers
    graded at once, by default one a core. `on_done` hears of each grade as it comes, in the
    caller's thread.

    Errors: GradingError where problems are missing, SandboxError where no process can be started.
    What concerns one answer alone is the `error` of its grade.
    """
    if problems is None and any(answer.task == "livecodebench" for answer in answers):
        raise GradingError("LiveCodeBench answers can't be graded without their problems")
    workers = workers or len(os.sched_getaffinity(0))
    math_workers = [MathWorker(sandbox) for _ in range(workers)]
    free: SimpleQueue[MathWorker] = SimpleQueue()
    for worker in math_workers:
        free.put(worker)

    def grade(answer: Answer) -> Grade:
        worker = free.get()
        try:
            return _grade(answer, worker, problems, sandbox, code_limit)
        finally:
            free.put(worker)

    pool = ThreadPoolExecutor(workers, thread_name_prefix="grade")
    # programs first: they take longest
    order = sorted(range(len(answers)), key=lambda i: answers[i].task != "livecodebench")
    futures = {pool.submit(grade, answers[i]): i for i in order}
    try:
        grades: dict[int, Grade] = {}
        for future in as_completed(futures):
            grades[futures[future]] = future.result()
            on_done(grades[futures[future]])
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        while not all(future.done() for future in futures):
            sandbox.end_all()
            time.sleep(0.02)  # a process may just be starting
        raise
    finally:
        pool.shutdown()
        for worker in math_workers:
            worker.close()
    return [grades[i] for i in range(len(answers))]


def _grade(
    answer: Answer,
    worker: MathWorker,
    problems: livecodebench.Problems | None,
    sandbox: Sandbox,
    code_limit: float,
) -> Grade:
    found = _extract(answer.task, answer.text.strip())
    extracted = found[0] if found else None
    try:
        correct = (
            extracted is not None
            and answer.ground_truth is not None
            and _is_right(extracted, answer, worker, problems, sandbox, code_limit)
        )
    except SandboxError:
        raise
    except GradingError as error:
        return Grade(answer.sample_index, extracted, correct=False, error=str(error))
    return Grade(answer.sample_index, extracted, correct)


def _extract(task: str, text: str) -> tuple[str | int, str] | None:
    if task == "aime":
        return aime.extract(text)
    if task == "math500":
        return math500.extract(text)
    if task == "livecodebench":
        return livecodebench.extract(text)
    return choice.extract(text, task)


def _is_right(
    extracted: Any,
    answer: Answer,
    worker: MathWorker,
    problems: livecodebench.Problems | None,
    sandbox: Sandbox,
    code_limit: float,
) -> bool:
    truth = answer.ground_truth
    if answer.task == "aime":
        return aime.judge(extracted, truth).right
    if not (extracted and truth):  # an empty answer is never right, nor is any to an empty truth
        return False
    if answer.task == "math500":
        return worker.equal(extracted, str(truth))
    if answer.task == "livecodebench":
        assert problems is not None  # grade_all has made sure
        problem = problems.read(str(truth))
        return livecodebench.passes(extracted, problem, sandbox, code_limit).right
    return choice.judge(extracted, truth).right
