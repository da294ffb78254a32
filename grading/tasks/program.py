"""Running a LiveCodeBench solution, inside a confined process.

The way a solution is wrapped is LiveCodeBench's: a usual set of names is imported beforehand; a
program that reads standard input becomes one function, called once a test; a solution with a named
function is loaded once and called once a test. So state lives on from test to test, as it does
there. Expected outputs never come here. What its standard input and output are: `stdio`.
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
# what stands for it in a program's text: as many lines, and a statement that no future may follow
_AFTER_PRELUDE = "pass" + "\n" * PRELUDE.count("\n")
_MODULE = "tmp_sol"  # programs can see their module's name
_WRAPPER = "wrapped_function"
_INT_DIGITS = 50_000  # of an int as text


def handler() -> "Program":
    """A runner of programs. What nearly every one of them imports is loaded by now."""
    return Program()


class Program:
    """Answers `{"code", "function", "mode"}` by loading a solution, `{"input"}` by running it.

    One solution a process: the names it finds are imported when this is made, before the fork.
    After it, each import would write to what it names (a reference more), and copy its page.

    The answer has the "value" of a named function, or what was "printed"; null where that stands
    on the real standard output, as the input then does on the real standard input.
    """

    def __init__(self) -> None:
        # names that hang on how an interpreter was started: as the public runner has them
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
        except BaseException as error:  # noqa: BLE001 - also a program's own sys.exit
            return {"ok": False, "error": f"{type(error).__name__}: {error}"[:500]}

    def _load(self, code: str, function: str | None, mode: str) -> None:
        self._reads_stdin = function is None
        self._stdio = MODES[mode]()
        text = _as_function(code) if function is None else "\n\n" + code
        self._names = vars(self._module)
        self._names.update(stdin=sys.stdin, stdout=sys.stdout)  # others than before the fork
        exec(_AFTER_PRELUDE + text, self._names)
        # a text search, as in LiveCodeBench: a program on standard input must not define one
        owner: Any = self._module.Solution() if "class Solution" in text else self._module
        self._call: Callable[..., Any] = getattr(owner, _WRAPPER if function is None else function)

    def _run(self, text: str) -> dict[str, Any]:
        if self._reads_stdin:
            return {"printed": self._stdio.run(self._call, self._names, text)}
        return {"value": _tagged(self._call(*map(json.loads, text.split("\n"))))}


def _as_function(code: str) -> str:
    """The program as one function after its imports; the main guard at its end is opened.

    Through syntax trees and back to text, as in LiveCodeBench.
    """
    body = ast.parse(code).body
    last = body[-1] if body else None
    if isinstance(last, ast.If) and ast.unparse(last.test) == "__name__ == '__main__'":
        body = body[:-1] + last.body
    is_import = [isinstance(node, ast.Import | ast.ImportFrom) for node in body]
    wrapper = ast.parse(f"def {_WRAPPER}(): ...").body[0]
    assert isinstance(wrapper, ast.FunctionDef)
    # empty: no Python then, and the program fails as it does there
    wrapper.body = [*compress(body, map(not_, is_import))]
    module = ast.Module([*compress(body, is_import), wrapper], type_ignores=[])
    return "\n" + ast.unparse(module)


def _tagged(value: Any) -> Any:
    """A returned value as JSON that keeps what `==` would see, such as a tuple or a fraction."""
    if type(value).__module__ == "numpy" and getattr(value, "size", None) == 1:
        return {"one": _tagged(value.item())}
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
        return [_tagged(item) for item in value]
    if isinstance(value, tuple):
        return {"tuple": [_tagged(item) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[_tagged(key), _tagged(item)] for key, item in value.items()]}
    return {"other": type(value).__name__}
