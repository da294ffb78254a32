"""The table of tasks: everything in grading that depends on the task.

A new task is a file of rules in this directory, a row here, and a name in `data.samples.TASKS`.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from time import perf_counter
from typing import Any

from data.problems import Problems
from errors import GradingError
from grading.sandbox.inside.limits import Limits
from grading.sandbox.sandbox import Sandbox
from grading.sandbox.types import ProcessEnded, SandboxError
from grading.tasks import Answer, Verdict, aime, choice, livecodebench, math500
from grading.tasks.worker import Worker
from terminal import one_line, quoted

MATH_LIMIT_S = 5.0  # the slowest realistic pair of 844 took 0.12 s
MATH_LIMITS = Limits(memory=1 << 30)
SHOWN = 500  # characters of a text, in an explanation


@dataclass(frozen=True)
class Rules:
    """The rules that options change."""

    code_limit: float = livecodebench.TIME_LIMIT_S  # seconds for a program to load, and per test
    mode: livecodebench.Mode = "reference"  # of a program's standard input and output

    @property
    def unofficial(self) -> str:
        """The options that make these rules differ from the official ones; "" if none does."""
        limit = f"--time-limit {self.code_limit:g}"
        return " ".join(
            option
            for option, differs in (
                (f"--lcb-mode {self.mode}", self.mode != "reference"),
                (limit, self.code_limit != livecodebench.TIME_LIMIT_S),
            )
            if differs
        )


@dataclass(frozen=True)
class Context:
    """What judging may need in addition to an answer."""

    problems: Problems | None  # None if no answer needs them
    sandbox: Sandbox
    rules: Rules = Rules()

    def problem(self, answer: Answer) -> livecodebench.Problem:
        """The problem of an answer. Raises: GradingError if there is none."""
        if self.problems is None:
            raise GradingError(
                "no problems to test programs with: pass --livecodebench-file, or"
                " `python -m data.fetch problems` gets them"
            )
        return self.problems.read(str(answer.ground_truth))


class MathWorker:
    """Compares formulas in a confined process."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._worker = Worker(sandbox, "grading.tasks.math500", MATH_LIMITS)

    def judge(self, answer: str, truth: str) -> Verdict:
        """Whether two formulas are equal. Raises: TimeLimit, SandboxError; see `Worker`."""
        reply = self._worker.ask({"answer": answer, "truth": truth}, MATH_LIMIT_S)
        return Verdict(reply.get("right") is True, str(reply.get("rule")))

    def forms(self, formula: str) -> dict[str, str]:
        """A formula's normal forms, by the grader that compares them. Raises: as `judge`."""
        return self._worker.ask({"forms": formula}, MATH_LIMIT_S)

    def close(self) -> None:
        """Kill the process, if there is one."""
        self._worker.close()


class Judges:
    """The confined processes that compare answers, each started when it is first needed."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.formulas = MathWorker(sandbox)
        self.outputs = livecodebench.Comparer(sandbox)

    def close(self) -> None:
        """Kill the processes."""
        self.formulas.close()
        self.outputs.close()


class Lease:
    """Lends one of the workers for as long as it is needed, and measures the wait for it."""

    def __init__(self, idle: SimpleQueue[Any]) -> None:
        self.waited = 0.0  # seconds
        self._idle = idle

    @contextmanager
    def worker(self) -> Iterator[Any]:
        """A worker; waits until one is idle."""
        start = perf_counter()
        worker = self._idle.get()
        self.waited += perf_counter() - start
        try:
            yield worker
        finally:
            self._idle.put(worker)


def _judge_number(extracted: int, answer: Answer, _context: Context, _lease: Lease) -> Verdict:
    return aime.judge(extracted, answer.ground_truth)


def _judge_letter(extracted: str, answer: Answer, _context: Context, _lease: Lease) -> Verdict:
    return choice.judge(extracted, answer.ground_truth)


def _judge_formula(extracted: str, answer: Answer, _context: Context, lease: Lease) -> Verdict:
    with lease.worker() as judges:
        verdict: Verdict = judges.formulas.judge(extracted, str(answer.ground_truth))
    return verdict


def _judge_program(extracted: str, answer: Answer, context: Context, lease: Lease) -> Verdict:
    problem, rules = context.problem(answer), context.rules

    @contextmanager
    def comparer() -> Iterator[livecodebench.Comparer]:
        with lease.worker() as judges:
            yield judges.outputs

    return livecodebench.passes(
        extracted, problem, context.sandbox, rules.code_limit, rules.mode, comparer=comparer()
    )


def _program_inputs(answer: Answer, context: Context) -> list[object]:
    truth, problems = str(answer.ground_truth), context.problems
    digest = problems.digest(truth) if problems is not None and truth in problems else None
    return [context.rules, digest]


def _explain_formula(extracted: str, answer: Answer, context: Context) -> list[str]:
    """The normal forms that are compared."""
    worker = MathWorker(context.sandbox)
    try:
        forms, truth = (worker.forms(str(text)) for text in (extracted, answer.ground_truth))
    except (ProcessEnded, SandboxError) as error:
        return [f"normal forms: none ({one_line(str(error))})"]
    finally:
        worker.close()
    return [
        f"normal forms by {grader}: {quoted(form, SHOWN)} and {quoted(truth[grader], SHOWN)}"
        for grader, form in forms.items()
    ]


def _explain_program(extracted: str, answer: Answer, context: Context) -> list[str]:
    """The first test that a program fails, and the program's answer; empty if it fails none."""
    if context.problems is None or str(answer.ground_truth) not in context.problems:
        return []
    lines: list[str] = []

    def describe(test: livecodebench.Case, output: str | None) -> None:
        texts = {
            "input": quoted(test.input, SHOWN),
            "expected output": quoted(test.output, SHOWN),
            "program's output": output,
        }
        lines.extend(f"{name} of the failing test: {text}" for name, text in texts.items())

    rules = context.rules
    try:
        problem = context.problem(answer)
        livecodebench.passes(
            extracted, problem, context.sandbox, rules.code_limit, rules.mode, describe
        )
    except GradingError as error:
        return [f"no test can be run: {one_line(str(error))}"]
    return lines


@dataclass(frozen=True)
class Task:
    """How one task is graded."""

    # The answer in a text and the name of the rule that found it; None if there is no answer
    extract: Callable[[str], tuple[str | int, str] | None]
    # The verdict on an extracted answer. Raises: TimeLimit, SandboxError, GradingError
    judge: Callable[[Any, Answer, Context, Lease], Verdict]
    modules: tuple[str, ...] = ()  # that run in confined processes; empty: judged by the grader
    needs_problems: bool = False
    lenient: bool = False  # whether math-verify can judge it
    # What a grade depends on, apart from answer, truth and the grader's version
    inputs: Callable[[Answer, Context], list[object]] = lambda answer, context: []
    # Lines that explain the verdict on an extracted answer, if there is a sandbox
    explain: Callable[[Any, Answer, Context], list[str]] = lambda extracted, answer, context: []


TASKS: Mapping[str, Task] = {
    "gpqa": Task(partial(choice.extract, task="gpqa"), _judge_letter),
    "mmlu_pro": Task(partial(choice.extract, task="mmlu_pro"), _judge_letter),
    "math500": Task(
        math500.extract,
        _judge_formula,
        modules=("grading.tasks.math500",),
        lenient=True,
        inputs=lambda answer, context: [MATH_LIMIT_S, MATH_LIMITS],
        explain=_explain_formula,
    ),
    "aime": Task(aime.extract, _judge_number, lenient=True),
    "livecodebench": Task(
        livecodebench.extract,
        _judge_program,
        modules=("grading.tasks.program", "grading.tasks.outputs"),
        needs_problems=True,
        inputs=_program_inputs,
        explain=_explain_program,
    ),
}
