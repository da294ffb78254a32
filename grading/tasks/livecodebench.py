"""LiveCodeBench: Python programs, which are right if they pass every test of their problem.

Format: the prompt asks for a ```` ```python ```` fence. Rules: LiveCodeBench's own runner, as the
MLPerf DeepSeek-R1 reference uses it. Each program runs in a confined process (`program`), which
gets only the tests' inputs. Its outputs are compared in another confined process (`outputs`).
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from typing import Any, Literal

from data.livecodebench import Case, Problem
from errors import GradingError
from grading.sandbox.inside.limits import Limits
from grading.sandbox.process import Confined
from grading.sandbox.sandbox import Sandbox
from grading.sandbox.types import ProcessEnded, TimeLimit
from grading.tasks import Verdict
from grading.tasks.outputs import error_text
from grading.tasks.worker import Worker

TIME_LIMIT_S = 60.0  # as in the MLPerf reference; LiveCodeBench's own default is 6
Mode = Literal["reference", "fixed-stdio"]  # see `stdio`
COMPARE_LIMIT_S = 5.0  # for the output of one test; 30 million characters take 1 s
COMPARE_LIMITS = Limits(memory=2 << 30)
_FENCE = "```python"


def extract(text: str) -> tuple[str, str] | None:
    """The content of the first fence that opens with ```` ```python ````; and the rule's name.

    None if the fence is not closed. A `python3` fence counts too, and leaves its 3 in the code,
    where it is a statement without effect.
    """
    _, opening, rest = text.partition(_FENCE)
    code, closing, _ = rest.partition("```")
    return (code.strip(), "first fence") if opening and closing else None


@dataclass(frozen=True)
class Outcome:
    """The result of one test, or of loading the program."""

    fault: str | None  # None: passed
    answer: str | None = None  # the program's answer, quoted for a message
    too_slow: bool = False


class Comparer:
    """Compares programs' answers with the expected ones, in a confined process without programs.

    The process is started by the first comparison.
    """

    def __init__(self, sandbox: Sandbox) -> None:
        self._worker = Worker(sandbox, "grading.tasks.outputs", COMPARE_LIMITS)

    def compare(self, reply: bytes, printed: bytes | None, test: Case, problem: Problem) -> Outcome:
        """Compare a program's answer to a test with the expected one.

        `reply`: the line that the program's process sent. `printed`: its standard output, if that
        is not part of the reply.

        Raises: SandboxError; GradingError if the expected value can't be read.
        """
        if not reply.isascii():
            return Outcome("the answer is not JSON")
        message: dict[str, Any] = {
            "reply": reply.decode(),
            "function": problem.function is not None,
            "expected": test.output,
        }
        if printed is not None:
            message["printed"] = printed.decode(errors="replace")
        try:
            result = self._worker.ask(message, COMPARE_LIMIT_S)
        except TimeLimit as error:
            return Outcome(f"its answer can't be compared: {error}", too_slow=True)
        if "unreadable" in result:
            raise GradingError(f"problem {problem.id}: expected output is not JSON")
        return Outcome(result["fault"], result["answer"])

    def close(self) -> None:
        """Kill the process, if there is one."""
        self._worker.close()


def passes(
    code: str,
    problem: Problem,
    sandbox: Sandbox,
    time_limit: float = TIME_LIMIT_S,
    mode: Mode = "reference",
    on_failure: Callable[[Case, str | None], None] = lambda test, answer: None,
    comparer: AbstractContextManager[Comparer] | None = None,
) -> Verdict:
    """Whether `code` loads and passes every test, each within `time_limit` seconds.

    A program that takes too long, dies or exceeds a limit fails, like one with a wrong answer. The
    verdict's rule names the test that failed; `on_failure` is called with this test and the
    program's answer. `comparer` is entered after the program's process has started.

    Raises: SandboxError; GradingError if a test's expected value can't be read.
    """
    limits = Limits(cpu=int((time_limit + 1) * len(problem.tests)) + 5)
    with (
        sandbox.start("grading.tasks.program", limits) as process,
        comparer or closing(Comparer(sandbox)) as entered,
    ):
        return _test(process, entered, code, problem, time_limit, mode, on_failure)


def _test(
    process: Confined,
    comparer: Comparer,
    code: str,
    problem: Problem,
    time_limit: float,
    mode: Mode,
    on_failure: Callable[[Case, str | None], None],
) -> Verdict:
    count = len(problem.tests)
    # for loading and all tests, as in LiveCodeBench's runner
    deadline = time.monotonic() + (time_limit + 1) * count + 5

    def seconds() -> float:
        return max(0.01, min(time_limit, deadline - time.monotonic()))

    try:
        outcome = _load(process, code, problem, mode, seconds())
    except ProcessEnded as error:
        outcome = _ended(error)
    if outcome.fault:
        return Verdict(False, f"does not load: {outcome.fault}", outcome.too_slow)
    for number, test in enumerate(problem.tests, 1):
        try:
            outcome = _run(process, comparer, test, problem, mode, seconds())
        except ProcessEnded as error:
            outcome = _ended(error)
        if outcome.fault:
            on_failure(test, outcome.answer)
            return Verdict(False, f"test {number} of {count}: {outcome.fault}", outcome.too_slow)
    return Verdict(True, f"all of {count} tests")


def _load(process: Confined, code: str, problem: Problem, mode: Mode, seconds: float) -> Outcome:
    """Load a program. Raises: ProcessEnded."""
    reply = process.ask({"code": code, "function": problem.function, "mode": mode}, seconds)
    return Outcome(None if reply.get("ok") is True else error_text(reply))


def _run(
    process: Confined,
    comparer: Comparer,
    test: Case,
    problem: Problem,
    mode: Mode,
    seconds: float,
) -> Outcome:
    """Run one test. Raises: ProcessEnded."""
    on_files = mode == "fixed-stdio" and problem.function is None
    if on_files:
        process.set_input(test.input.encode(errors="surrogatepass"))
    else:
        process.clear_output()
    reply = process.exchange({"input": "" if on_files else test.input}, seconds)
    printed = process.output() if on_files else None
    return comparer.compare(reply, printed, test, problem)


def _ended(error: ProcessEnded) -> Outcome:
    too_slow = isinstance(error, TimeLimit)
    return Outcome("time limit" if too_slow else str(error), too_slow=too_slow)
