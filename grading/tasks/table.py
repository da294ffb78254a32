"""The table of tasks: all that grading does differently for one of them.

A new task is a file of rules beside this one, a row here, and its name in `data.samples.TASKS`.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from time import perf_counter
from typing import Any

from errors import GradingError
from grading.sandbox.inside.limits import Limits
from grading.sandbox.sandbox import Sandbox
from grading.sandbox.types import Ended, SandboxError
from grading.tasks import Answer, Verdict, aime, choice, livecodebench, math500
from grading.tasks.worker import Worker
from terminal import one_line, quoted

MATH_LIMIT_S = 5.0  # the slowest realistic pair of 844 took 0.12 s
MATH_LIMITS = Limits(memory=1 << 30)
SHOWN = 500  # characters of a text, in an explanation


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


@dataclass(frozen=True)
class Context:
    """What judging may need beside an answer."""

    problems: livecodebench.Problems | None  # None where no answer needs them
    sandbox: Sandbox
    rules: Rules = Rules()

    def problem(self, answer: Answer) -> livecodebench.Problem:
        """Raises: GradingError where there is none for this answer."""
        if self.problems is None:
            raise GradingError("there are no problems to test programs with")
        return self.problems.read(str(answer.ground_truth))


class MathWorker:
    """Compares formulas in a confined process."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._worker = Worker(sandbox, "grading.tasks.math500", MATH_LIMITS)

    def judge(self, given: str, truth: str) -> Verdict:
        """Raises: TimeLimit, SandboxError; see `Worker`."""
        reply = self._worker.ask({"answer": given, "truth": truth}, MATH_LIMIT_S)
        return Verdict(reply.get("right") is True, str(reply.get("rule")))

    def forms(self, formula: str) -> dict[str, str]:
        """A formula's spellings that are compared, by whose they are. Raises: as `judge`."""
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
        began = perf_counter()
        worker = self._free.get()
        self.waited += perf_counter() - began
        try:
            yield worker
        finally:
            self._free.put(worker)


def _judge_number(extracted: int, answer: Answer, _context: Context, _turn: Turn) -> Verdict:
    return aime.judge(extracted, answer.ground_truth)


def _judge_letter(extracted: str, answer: Answer, _context: Context, _turn: Turn) -> Verdict:
    return choice.judge(extracted, answer.ground_truth)


def _judge_formula(extracted: str, answer: Answer, _context: Context, turn: Turn) -> Verdict:
    with turn.taken() as judges:
        verdict: Verdict = judges.formulas.judge(extracted, str(answer.ground_truth))
    return verdict


def _judge_program(extracted: str, answer: Answer, context: Context, turn: Turn) -> Verdict:
    problem, rules = context.problem(answer), context.rules

    @contextmanager
    def comparer() -> Iterator[livecodebench.Comparer]:
        with turn.taken() as judges:
            yield judges.outputs

    return livecodebench.passes(
        extracted, problem, context.sandbox, rules.code_limit, rules.mode, turn=comparer()
    )


def _program_inputs(answer: Answer, context: Context) -> list[object]:
    truth, problems = str(answer.ground_truth), context.problems
    digest = problems.digest(truth) if problems is not None and truth in problems else None
    return [context.rules, digest]


def _explain_formula(extracted: str, answer: Answer, context: Context) -> list[str]:
    """The spellings that are compared."""
    worker = MathWorker(context.sandbox)
    try:
        given, truth = (worker.forms(str(text)) for text in (extracted, answer.ground_truth))
    except (Ended, SandboxError) as error:
        return [f"normal forms: none ({one_line(str(error))})"]
    finally:
        worker.close()
    return [
        f"as {whose} writes them: {quoted(given[whose], SHOWN)} and {quoted(truth[whose], SHOWN)}"
        for whose in given
    ]


def _explain_program(extracted: str, answer: Answer, context: Context) -> list[str]:
    """The test that a program fails, if there is one, and what it makes of it."""
    if context.problems is None or str(answer.ground_truth) not in context.problems:
        return []
    lines: list[str] = []

    def tell(test: livecodebench.Case, given: str | None) -> None:
        texts = {
            "input": quoted(test.input, SHOWN),
            "expected": quoted(test.output, SHOWN),
            "given": given,
        }
        lines.extend(f"{name} of the failing test: {text}" for name, text in texts.items())

    rules = context.rules
    try:
        problem = context.problem(answer)
        livecodebench.passes(
            extracted, problem, context.sandbox, rules.code_limit, rules.mode, tell
        )
    except GradingError as error:
        return [f"no test can be run: {one_line(str(error))}"]
    return lines


@dataclass(frozen=True)
class Task:
    """How one task is graded."""

    # The answer in a text and the name of the rule that found it; None: there is no answer
    extract: Callable[[str], tuple[str | int, str] | None]
    # Of an answer that was found. Raises: TimeLimit, SandboxError, GradingError
    judge: Callable[[Any, Answer, Context, Turn], Verdict]
    modules: tuple[str, ...] = ()  # that judge in confined processes; none: judged right here
    needs_problems: bool = False
    lenient: bool = False  # math-verify can have an opinion
    # What a grade depends on beside answer, truth and the grader itself
    inputs: Callable[[Answer, Context], list[object]] = lambda answer, context: []
    # Lines about an answer that was found, where there is a sandbox
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
