"""Compare a LiveCodeBench program's answer with the expected one, inside a confined process.

A program may send anything: a fraction that has a billion digits when evaluated, a dictionary whose
keys all collide. So the grader itself neither parses nor compares it. That is done here, under
limits of time and memory, in a process that runs no program. The rules are those of LiveCodeBench's
own runner.
"""

import gc
import json
import re
import sys
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Any

from terminal import quoted

INT_DIGITS = 50_000  # of an integer as text, as in LiveCodeBench's runner
_ERROR = 200  # characters of a program's error message
_SHOWN = 500  # characters of a program's answer
_WORD = re.compile(r"\S+")


def handler() -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The handler of a confined worker: replies to a message with `{"fault", "answer"}`.

    The message has `reply`, the line that `program` sent; `function`, whether a function was
    called; `expected`, text; and `printed`, the program's standard output, if the reply does not
    have it. In the reply, `fault` says what is wrong, null if nothing is, and `answer` is the
    program's answer, quoted. If the expected value can't be read, the reply is `{"unreadable"}`.
    """
    sys.set_int_max_str_digits(INT_DIGITS)
    gc.disable()  # there are no cycles, and each collection would visit millions of lists
    return compare


def compare(message: dict[str, Any]) -> dict[str, Any]:
    """See `handler`."""
    try:
        reply = json.loads(message["reply"])
    except (ValueError, RecursionError):
        return {"fault": "the answer is not JSON", "answer": None}
    if not isinstance(reply, dict) or reply.get("ok") is not True:
        return {"fault": error_text(reply), "answer": None}
    if message["function"]:
        answer = reply.get("value")
        try:
            expected = json.loads(message["expected"])
        except (ValueError, RecursionError):
            return {"unreadable": True}
        fault = None if same_value(answer, expected) else "wrong value"
    else:
        answer = message.get("printed", reply.get("printed"))
        right = isinstance(answer, str) and same_output(answer, message["expected"])
        fault = None if right else "wrong output"
    return {"fault": fault, "answer": quoted(answer, _SHOWN) if fault else None}


def error_text(reply: Any) -> str:
    """The error message in a program's reply, as one short line, whatever the reply is."""
    text = reply.get("error") if isinstance(reply, dict) else None
    return " ".join(text.split())[:_ERROR] if isinstance(text, str) else "it failed"


def same_output(printed: str, expected: str) -> bool:
    """Whether all lines are equal, as stripped text or as exact decimal numbers."""
    printed, expected = printed.strip(), expected.strip()
    return printed.count("\n") == expected.count("\n") and all(
        line.strip() == true_line.strip() or _same_numbers(line, true_line)
        for line, true_line in zip(printed.split("\n"), expected.split("\n"), strict=True)
    )


def same_value(tagged: Any, expected: Any) -> bool:
    """Whether a returned value, as `program` tags it, equals the expected one.

    A returned tuple equals a list; a tuple nested inside does not.
    """
    if isinstance(tagged, dict) and isinstance(tagged.get("tuple"), list):
        tagged = tagged["tuple"]
    try:
        return bool(_untag(tagged) == expected)
    except (ValueError, TypeError, ArithmeticError, RecursionError):
        return False


def _same_numbers(line: str, true_line: str) -> bool:
    try:  # word by word: a line may be very long
        pairs = zip(_WORD.finditer(line), _WORD.finditer(true_line), strict=True)
        return all(Decimal(word[0]) == Decimal(true_word[0]) for word, true_word in pairs)
    except (InvalidOperation, ValueError):  # not a number, or one line has more words
        return False


class _One:
    """A NumPy scalar or array of one element: equals the element, nested in lists at any depth."""

    def __init__(self, item: Any) -> None:
        self._item = item

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        while isinstance(other, list) and len(other) == 1:
            other = other[0]
        return bool(self._item == other)


def _untag(value: Any) -> Any:
    """The value without its tags. Raises: ValueError if no expected value can equal it."""
    if isinstance(value, list):
        return [_untag(item) for item in value]
    if isinstance(value, float) and value != value:
        return float("nan")  # json has one NaN object, and lists compare identical items as equal
    if not isinstance(value, dict):
        return value
    if len(value) != 1:
        raise ValueError("not a plain value")
    ((tag, inside),) = value.items()
    match tag, inside:
        case "int", str():
            return int(inside, 16)
        case "one", _:
            return _One(_untag(inside))
        case "tuple", list():
            return tuple(_untag(item) for item in inside)
        case "dict", list():
            return {_untag(key): _untag(item) for key, item in inside}
        case "complex", [real, imaginary]:
            return complex(real, imaginary)
        case "decimal", str():
            return Decimal(inside)
        case "fraction", str():
            return Fraction(inside)
    raise ValueError("not a plain value")
