"""Run a LiveCodeBench solution, inside a confined process.

A solution is wrapped as in LiveCodeBench's runner: common names are imported first; a program that
reads standard input becomes one function, called once per test; a solution with a named function is
loaded once and called once per test. So its state persists between tests, as in that runner. This
process never gets the expected outputs. For its standard input and output see `stdio`.
"""

import ast
import builtins
import json
import site
import sys
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from itertools import compress
from operator import not_
from types import ModuleType
from typing import Any

from grading.tasks.stdio import MODES

_STAR_IMPORTS = (
    *("string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random"),
    *("statistics", "itertools", "functools", "operator", "io", "sys", "json", "builtins"),
    "typing",
)
_PLAIN_IMPORTS = tuple(name for name in _STAR_IMPORTS if name not in ("builtins", "typing"))
PRELUDE = "\n".join(
    [f"from {name} import *" for name in _STAR_IMPORTS]
    + [f"import {name}" for name in _PLAIN_IMPORTS]
    + ["sys.setrecursionlimit(50000)\n"]
)
# replaces it in a program's text: as many lines, and a statement, after which a `from __future__
# import` is an error, as it is after the prelude
_AFTER_PRELUDE = "pass" + "\n" * PRELUDE.count("\n")
_MODULE = "tmp_sol"  # as in LiveCodeBench's runner: programs can see their module's name
_WRAPPER = "wrapped_function"
_INT_DIGITS = 50_000  # of an int as text


def handler() -> "Program":
    """The handler of a confined process. The modules that most programs import are loaded now."""
    return Program()


class Program:
    """Loads a solution for `{"code", "function", "mode"}`, and runs it for `{"input"}`.

    Each process runs one solution. The names of the prelude are imported before the fork: later,
    each import would increment a reference count, which copies a page of memory.

    The reply to an input has the "value" that a named function returned, or the text "printed". The
    latter is null if real standard streams are used.
    """

    def __init__(self) -> None:
        # built-in names that depend on how the interpreter was started, as in the public runner
        site.setcopyright()
        site.setquit()
        vars(builtins).update(quit=None, help=None)
        sys.set_int_max_str_digits(_INT_DIGITS)
        self._module = ModuleType(_MODULE, "")
        exec(PRELUDE, vars(self._module))

    def __call__(self, message: dict[str, Any]) -> dict[str, Any]:
        try:
            if "code" in message:
                self._load(**message)
                return {"ok": True}
            return {"ok": True, **self._run(message["input"])}
        except MemoryError:
            raise
        except BaseException as error:  # noqa: BLE001 - including a program's sys.exit
            return {"ok": False, "error": f"{type(error).__name__}: {error}"[:500]}

    def _load(self, code: str, function: str | None, mode: str) -> None:
        self._reads_stdin = function is None
        self._stdio = MODES[mode]()
        text = _as_function(code) if function is None else "\n\n" + code
        self._names = vars(self._module)
        self._names.update(stdin=sys.stdin, stdout=sys.stdout)  # replaced since the prelude
        exec(_AFTER_PRELUDE + text, self._names)
        # a text search, as in LiveCodeBench: so a program that reads standard input fails if it
        # defines a class Solution
        owner: Any = self._module.Solution() if "class Solution" in text else self._module
        self._call: Callable[..., Any] = getattr(owner, _WRAPPER if function is None else function)

    def _run(self, text: str) -> dict[str, Any]:
        if self._reads_stdin:
            return {"printed": self._stdio.run(self._call, self._names, text)}
        return {"value": _tag(self._call(*map(json.loads, text.split("\n"))))}


def _as_function(code: str) -> str:
    """The program as one function after its imports, without the main guard at its end.

    It is parsed and unparsed, as in LiveCodeBench's runner.
    """
    body = ast.parse(code).body
    last = body[-1] if body else None
    if isinstance(last, ast.If) and ast.unparse(last.test) == "__name__ == '__main__'":
        body = body[:-1] + last.body
    is_import = [isinstance(node, ast.Import | ast.ImportFrom) for node in body]
    wrapper = ast.parse(f"def {_WRAPPER}(): ...").body[0]
    assert isinstance(wrapper, ast.FunctionDef)
    # may be empty: the text is then not valid Python and the program fails, as in that runner
    wrapper.body = [*compress(body, map(not_, is_import))]
    module = ast.Module([*compress(body, is_import), wrapper], type_ignores=[])
    return "\n" + ast.unparse(module)


def _tag(value: Any) -> Any:
    """A returned value as JSON, with tags for types that matter to `==`, such as tuples."""
    if type(value).__module__ == "numpy" and getattr(value, "size", None) == 1:
        return {"one": _tag(value.item())}
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return int(value) if value.bit_length() < 64 else {"int": hex(value)}
    if isinstance(value, float):
        return float(value)
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, Decimal | Fraction):
        return {type(value).__name__.lower(): str(value)}
    if isinstance(value, list):
        return [_tag(item) for item in value]
    if isinstance(value, tuple):
        return {"tuple": [_tag(item) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[_tag(key), _tag(item)] for key, item in value.items()]}
    return {"other": type(value).__name__}
