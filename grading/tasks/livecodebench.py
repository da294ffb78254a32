"""LiveCodeBench: Python programs, right when they pass every test of their problem.

Format: the prompt asks for a ```` ```python ```` fence. Rules: LiveCodeBench's own runner, as the
MLPerf DeepSeek-R1 reference uses it. Programs run in a confined process (`program`), one a problem;
a test's input goes in. What comes out is compared with what is expected in another (`outputs`).
"""

import base64
import binascii
import hashlib
import json
import pickletools
import time
import zlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from errors import GradingError
from grading.sandbox.inside.limits import Limits
from grading.sandbox.process import Confined
from grading.sandbox.sandbox import Sandbox
from grading.sandbox.types import Ended, TimeLimit
from grading.tasks import Verdict
from grading.tasks.outputs import said
from grading.tasks.worker import Worker

TIME_LIMIT_S = 60.0  # what the MLPerf reference sets; LiveCodeBench's own default is 6
Mode = Literal["reference", "fixed-stdio"]  # see `program`
COMPARE_LIMIT_S = 5.0  # a test's answer; 30 million characters take 1 s
COMPARE_LIMITS = Limits(memory=2 << 30)
_FENCE = "```python"
_TESTS_BYTES = 1 << 30  # of one problem, unpacked
# the opcodes of a pickle that is one text
_OF_TEXT = ("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8")
_AROUND_TEXT = ("PROTO", "FRAME", "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "STOP")


@dataclass(frozen=True)
class Case:
    """One test of a problem."""

    input: str  # standard input, or JSON arguments one a line
    output: str  # expected: printed text, or a JSON value


@dataclass(frozen=True)
class Problem:
    """A problem and its tests."""

    id: str
    function: str | None  # what to call; None: the program reads standard input
    tests: Sequence[Case]


class Problems:
    """A JSON-lines file of problems in LiveCodeBench's own schema, read one problem at a time.

    Raises: GradingError if the file can't be read or a line is no problem.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        # offset and length in bytes; the tests of all problems would not fit memory
        self._places: dict[str, tuple[int, int]] = {}
        try:
            with self.path.open("rb") as file:
                offset = 0
                for number, line in enumerate(file, 1):
                    if line.strip():
                        question_id = _question_id(line, f"{path}: line {number}")
                        self._places[question_id] = offset, len(line)
                    offset += len(line)
        except OSError as error:
            raise GradingError(f"{path}: can't be read: {error.strerror}") from error

    def __contains__(self, question_id: str) -> bool:
        return question_id in self._places

    def read(self, question_id: str) -> Problem:
        """Raises: GradingError if there is no such problem, or its tests can't be unpacked."""
        if question_id not in self:
            raise GradingError(f"{self.path.name} has no problem {question_id}")
        row = json.loads(self._line(question_id))
        try:
            tests = json.loads(row["public_test_cases"]) + _private(row["private_test_cases"])
            return Problem(
                question_id,
                json.loads(row.get("metadata") or "{}").get("func_name"),
                [_case(test) for test in tests],
            )
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
            raise GradingError(
                f"problem {question_id} can't be read: {type(error).__name__}: {error}"
            ) from error

    def digest(self, question_id: str) -> str:
        """A hash of a problem that there is, in hexadecimal."""
        return hashlib.sha256(self._line(question_id)).hexdigest()

    def _line(self, question_id: str) -> bytes:
        offset, length = self._places[question_id]
        with self.path.open("rb") as file:
            file.seek(offset)
            return file.read(length)


def extract(text: str) -> tuple[str, str] | None:
    """The inside of the first fence that opens with ```` ```python ````, if it is ever closed.

    With it the rule's name. A fence of `python3` counts, and leaves its 3 in the code, which is a
    statement without effect.
    """
    _, opened, rest = text.partition(_FENCE)
    code, closed, _ = rest.partition("```")
    return (code.strip(), "first fence") if opened and closed else None


@dataclass(frozen=True)
class Outcome:
    """What became of one test, or of loading."""

    fault: str | None  # None: nothing is wrong
    given: str | None = None  # the program's answer, as it may be shown
    too_slow: bool = False


class Comparer:
    """Compares what programs give with what is expected, in a confined process that runs none."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._worker = Worker(sandbox, "grading.tasks.outputs", COMPARE_LIMITS)

    def compare(self, reply: bytes, printed: bytes | None, test: Case, problem: Problem) -> Outcome:
        """`reply`: the line that the program's process sent; `printed`: to a file, where it did.

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
            found = self._worker.ask(message, COMPARE_LIMIT_S)
        except TimeLimit as error:
            return Outcome(f"its answer can't be compared: {error}", too_slow=True)
        if "unreadable" in found:
            raise GradingError(f"problem {problem.id}: expected output is not JSON")
        return Outcome(found["fault"], found["given"])

    def close(self) -> None:
        """Kill the process, if there is one."""
        self._worker.close()


def passes(
    code: str,
    problem: Problem,
    sandbox: Sandbox,
    time_limit: float = TIME_LIMIT_S,
    mode: Mode = "reference",
    on_failure: Callable[[Case, str | None], None] = lambda test, given: None,
    turn: AbstractContextManager[Comparer] | None = None,
) -> Verdict:
    """Whether `code` loads and passes every test, each within `time_limit` seconds.

    A program that takes too long, dies or breaks a limit does not pass, like one that is wrong.
    The verdict's rule names the test that has decided; `on_failure` hears of it, and of what the
    program made of it. It runs while `turn` is entered; its process is started before that.

    Raises: SandboxError; GradingError if a test's expected value can't be read.
    """
    limits = Limits(cpu=int((time_limit + 1) * len(problem.tests)) + 5)
    with (
        sandbox.start("grading.tasks.program", limits) as process,
        turn or closing(Comparer(sandbox)) as comparer,
    ):
        return _test(process, comparer, code, problem, time_limit, mode, on_failure)


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
    deadline = time.monotonic() + (time_limit + 1) * count + 5  # of all of it, as there

    def seconds() -> float:
        return max(0.01, min(time_limit, deadline - time.monotonic()))

    try:
        outcome = _load(process, code, problem, mode, seconds())
    except Ended as error:
        outcome = _ended(error)
    if outcome.fault:
        return Verdict(False, f"does not load: {outcome.fault}", outcome.too_slow)
    for number, test in enumerate(problem.tests, 1):
        try:
            outcome = _run(process, comparer, test, problem, mode, seconds())
        except Ended as error:
            outcome = _ended(error)
        if outcome.fault:
            on_failure(test, outcome.given)
            return Verdict(False, f"test {number} of {count}: {outcome.fault}", outcome.too_slow)
    return Verdict(True, f"all of {count} tests")


def _load(process: Confined, code: str, problem: Problem, mode: Mode, seconds: float) -> Outcome:
    """What is wrong with a program, if anything is. Raises: Ended."""
    reply = process.ask({"code": code, "function": problem.function, "mode": mode}, seconds)
    return Outcome(None if reply.get("ok") is True else said(reply))


def _run(
    process: Confined,
    comparer: Comparer,
    test: Case,
    problem: Problem,
    mode: Mode,
    seconds: float,
) -> Outcome:
    """What is wrong with a program's answer to one test, if anything is. Raises: Ended."""
    on_files = mode == "fixed-stdio" and problem.function is None
    if on_files:
        process.set_input(test.input.encode(errors="surrogatepass"))
    else:
        process.clear_output()
    reply = process.exchange({"input": "" if on_files else test.input}, seconds)
    printed = process.output() if on_files else None
    return comparer.compare(reply, printed, test, problem)


def _ended(error: Ended) -> Outcome:
    too_slow = isinstance(error, TimeLimit)
    return Outcome("time limit" if too_slow else str(error), too_slow=too_slow)


def _case(test: Any) -> Case:
    case = Case(test["input"], test["output"])
    if not (isinstance(case.input, str) and isinstance(case.output, str)):
        raise TypeError("a test's input or output is no text")
    return case


def _question_id(line: bytes, where: str) -> str:
    try:
        return str(json.loads(line)["question_id"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise GradingError(f"{where} is no LiveCodeBench problem with a question_id") from error


def _private(packed: str) -> list[Any]:
    """Private tests: JSON, or base64 of a zlib-compressed pickle of JSON text."""
    try:
        tests = json.loads(packed)
    except ValueError:
        tests = json.loads(_unpacked(packed))
    if not isinstance(tests, list):
        raise ValueError("private tests are not a list")
    return tests


def _unpacked(packed: str) -> str:
    """The text that a pickle of text holds. It is read opcode by opcode, and nothing is built."""
    try:
        inflate = zlib.decompressobj()
        data = inflate.decompress(base64.b64decode(packed, validate=True), _TESTS_BYTES)
    except (binascii.Error, zlib.error) as error:
        raise ValueError(f"private tests are not packed as expected: {error}") from error
    found = None
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name in _OF_TEXT and found is None:
            found = argument
        elif opcode.name not in _AROUND_TEXT:
            break
    else:
        if isinstance(found, str):
            return found
    raise ValueError("private tests hold no plain text")
