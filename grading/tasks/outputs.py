"""Comparing what a LiveCodeBench program gave with what is expected, inside a confined process.

A program may send whatever it likes: a fraction whose text stands for a billion digits, a
dictionary whose keys all collide. So nothing of it is parsed, built or compared by the grader
itself: that is done here, where time and memory have limits, by a process that runs no program.
The rules are those of LiveCodeBench's own runner.
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

INT_DIGITS = 50_000  # of an integer as text, in all of LiveCodeBench's runner
_SAID = 200  # characters of a program's own words
_SHOWN = 500  # characters of what it gave
_WORD = re.compile(r"\S+")


def handler() -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Answers `{"reply", "function", "expected"}` by `{"fault", "given"}`.

    `reply`: the line that `program` sent, as it is; `printed` comes beside it where a program has
    printed to a file. `fault`: what is wrong with it, null where nothing is; `given`: the answer as
    it may be shown. Where it is the expected value that can't be read, the answer is `unreadable`.
    """
    sys.set_int_max_str_digits(INT_DIGITS)
    gc.disable()  # nothing here refers to itself; millions of brackets would be looked at again
    return compare


def compare(message: dict[str, Any]) -> dict[str, Any]:
    """See `handler`."""
    try:
        reply = json.loads(message["reply"])
    except (ValueError, RecursionError):
        return {"fault": "the answer is not JSON", "given": None}
    if not isinstance(reply, dict) or reply.get("ok") is not True:
        return {"fault": said(reply), "given": None}
    if message["function"]:
        given = reply.get("value")
        try:
            expected = json.loads(message["expected"])
        except (ValueError, RecursionError):
            return {"unreadable": True}
        fault = None if same_value(given, expected) else "wrong value"
    else:
        given = message.get("printed", reply.get("printed"))
        right = isinstance(given, str) and same_output(given, message["expected"])
        fault = None if right else "wrong output"
    return {"fault": fault, "given": quoted(given, _SHOWN) if fault else None}


def said(reply: Any) -> str:
    """A program's own words on what went wrong: one short line, whatever it sent."""
    told = reply.get("error") if isinstance(reply, dict) else None
    return " ".join(told.split())[:_SAID] if isinstance(told, str) else "it failed"


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
