"""LiveCodeBench: Python programs, right when they pass every test of their problem.

Format: the prompt asks for a ```` ```python ```` fence. Rules: LiveCodeBench's own runner, as the
MLPerf DeepSeek-R1 reference uses it. Programs run in a confined process (`program`), one a problem;
a test's input goes in, its expected output stays here.
"""

import base64
import binascii
import hashlib
import io
import json
import pickle
import re
import time
import zlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from data.sandbox import Confined, Ended, Limits, Sandbox, TimeLimit
from data.tasks import Verdict
from ref_dsinfer.errors import GradingError

INT_DIGITS = 50_000  # of an integer as text, in all of LiveCodeBench's runner
TIME_LIMIT_S = 60.0  # what the MLPerf reference sets; LiveCodeBench's own default is 6
Mode = Literal["reference", "fixed-stdio"]  # see `program`
_FENCE = "```python"
_WORD = re.compile(r"\S+")
_TESTS_BYTES = 1 << 30  # of one problem, unpacked


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

    Errors: GradingError where the file can't be read or a line is no problem.
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
        """Errors: GradingError where there is no such problem, or its tests can't be unpacked."""
        if question_id not in self:
            raise GradingError(f"{self.path.name} has no problem {question_id}")
        row = json.loads(self._line(question_id))
        try:
            tests = json.loads(row["public_test_cases"]) + _private(row["private_test_cases"])
            return Problem(
                question_id,
                json.loads(row.get("metadata") or "{}").get("func_name"),
                [Case(test["input"], test["output"]) for test in tests],
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


def passes(
    code: str,
    problem: Problem,
    sandbox: Sandbox,
    time_limit: float = TIME_LIMIT_S,
    mode: Mode = "reference",
    on_failure: Callable[[Case, object], None] = lambda test, given: None,
    turn: AbstractContextManager[object] | None = None,
) -> Verdict:
    """Whether `code` loads and passes every test, each within `time_limit` seconds.

    A program that takes too long, dies or breaks a limit does not pass, like one that is wrong.
    The verdict's rule names the test that has decided; `on_failure` hears of it, and of what the
    program made of it. It runs while `turn` is entered; its process is started before that.

    Errors: SandboxError; GradingError where a test's expected value can't be read.
    """
    limits = Limits(cpu=int((time_limit + 1) * len(problem.tests)) + 5)
    with sandbox.start("data.tasks.program", limits) as process, turn or nullcontext():
        return _test(process, code, problem, time_limit, mode, on_failure)


def _test(
    process: Confined,
    code: str,
    problem: Problem,
    time_limit: float,
    mode: Mode,
    on_failure: Callable[[Case, object], None],
) -> Verdict:
    count = len(problem.tests)
    deadline = time.monotonic() + (time_limit + 1) * count + 5  # of all of it, as there

    def seconds() -> float:
        return max(0.01, min(time_limit, deadline - time.monotonic()))

    try:
        fault = _load(process, code, problem, mode, seconds())
    except Ended as error:
        fault = _fault(error)
    if fault:
        return Verdict(False, f"does not load: {fault}")
    for number, test in enumerate(problem.tests, 1):
        given = None
        try:
            fault, given = _run(process, test, problem, mode, seconds())
        except Ended as error:
            fault = _fault(error)
        if fault:
            on_failure(test, given)
            return Verdict(False, f"test {number} of {count}: {fault}")
    return Verdict(True, f"all of {count} tests")


def _load(process: Confined, code: str, problem: Problem, mode: Mode, seconds: float) -> str | None:
    """What is wrong with a program, if anything is. Errors: Ended."""
    reply = process.ask({"code": code, "function": problem.function, "mode": mode}, seconds)
    return None if reply.get("ok") is True else _said(reply)


def _run(
    process: Confined, test: Case, problem: Problem, mode: Mode, seconds: float
) -> tuple[str | None, object]:
    """What is wrong with a program's answer to one test, if anything is, and the answer.

    Errors: Ended.
    """
    on_files = mode == "fixed-stdio" and problem.function is None
    if on_files:
        process.give(test.input.encode(errors="surrogatepass"))
    else:
        process.forget_printed()
    reply = process.ask({"input": "" if on_files else test.input}, seconds)
    if reply.get("ok") is not True:
        return _said(reply), None
    if problem.function is not None:
        value = reply.get("value")
        return None if same_value(value, _expected(test, problem)) else "wrong value", value
    printed = process.printed().decode(errors="replace") if on_files else reply.get("printed")
    right = isinstance(printed, str) and same_output(printed, test.output)
    return None if right else "wrong output", printed


def _said(reply: dict[str, Any]) -> str:
    """A program's own words on what went wrong: one short line, whatever it sent."""
    return " ".join(str(reply.get("error", "it failed")).split())[:200]


def _fault(error: Ended) -> str:
    return "time limit" if isinstance(error, TimeLimit) else str(error)


def same_output(printed: str, expected: str) -> bool:
    """Line by line without outer blanks: the same text, or the same exact decimal numbers."""
    printed, expected = printed.strip(), expected.strip()
    return printed.count("\n") == expected.count("\n") and all(
        given.strip() == true.strip() or _same_numbers(given, true)
        for given, true in zip(printed.split("\n"), expected.split("\n"), strict=True)
    )


def same_value(tagged: Any, expected: Any) -> bool:
    """Whether a returned value, as `program` tags it, equals the expected one.

    A tuple returned is a list; one deeper inside is not.
    """
    if isinstance(tagged, dict) and isinstance(tagged.get("tuple"), list):
        tagged = tagged["tuple"]
    try:
        return bool(_untagged(tagged) == expected)
    except (ValueError, TypeError, ArithmeticError, RecursionError):
        return False


def _expected(test: Case, problem: Problem) -> Any:
    try:
        return json.loads(test.output, parse_int=_integer)
    except ValueError as error:
        raise GradingError(f"problem {problem.id}: expected output is not JSON") from error


def _integer(digits: str) -> int:
    if len(digits) > INT_DIGITS:
        raise ValueError("an integer of too many digits")
    return int(Decimal(digits))  # int itself reads fewer, unless all of this process is told to


def _same_numbers(given: str, true: str) -> bool:
    try:  # word by word: a line may be as long as a program likes
        pairs = zip(_WORD.finditer(given), _WORD.finditer(true), strict=True)
        return all(Decimal(word[0]) == Decimal(true_word[0]) for word, true_word in pairs)
    except (InvalidOperation, ValueError):  # no number, or one line is longer
        return False


class _One:
    """NumPy's scalar or array of one element equals that element in any number of brackets."""

    def __init__(self, item: Any) -> None:
        self._item = item

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        while isinstance(other, list) and len(other) == 1:
            other = other[0]
        return bool(self._item == other)


def _untagged(value: Any) -> Any:
    """The plain value behind the tags. ValueError: it holds what no expected value can equal."""
    if isinstance(value, list):
        return [_untagged(item) for item in value]
    if isinstance(value, float) and value != value:
        return float("nan")  # JSON's own NaN is one object, which a list would find equal
    if not isinstance(value, dict):
        return value
    if len(value) != 1:
        raise ValueError("not a plain value")
    ((tag, inside),) = value.items()
    match tag, inside:
        case "int", str():
            return int(inside, 16)
        case "one", _:
            return _One(_untagged(inside))
        case "tuple", list():
            return tuple(_untagged(item) for item in inside)
        case "dict", list():
            return {_untagged(key): _untagged(item) for key, item in inside}
        case "complex", [real, imaginary]:
            return complex(real, imaginary)
        case "decimal", str():
            return Decimal(inside)
        case "fraction", str():
            return Fraction(inside)
    raise ValueError("not a plain value")


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
    class TextUnpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            raise pickle.UnpicklingError(f"it names {module}.{name}")

    try:
        inflate = zlib.decompressobj()
        data = inflate.decompress(base64.b64decode(packed, validate=True), _TESTS_BYTES)
        text = TextUnpickler(io.BytesIO(data)).load()
    except (binascii.Error, zlib.error) as error:
        raise ValueError(f"private tests are not packed as expected: {error}") from error
    except Exception as error:  # a damaged pickle raises nearly anything
        raise ValueError(f"private tests hold no plain text: {error}") from error
    if not isinstance(text, str):
        raise ValueError("private tests hold no text")
    return text
