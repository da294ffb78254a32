"""Running a LiveCodeBench solution, inside a confined process.

The way a solution is wrapped is LiveCodeBench's: a usual set of names is imported beforehand; a
program that reads standard input becomes one function, called once a test; a solution with a named
function is loaded once and called once a test. So state lives on from test to test, as it does
there. Expected outputs never come here.
"""

import ast
import io
import json
import os
import sys
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any

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
_WRAPPER = "run_program"


def handler() -> "Program":
    """A runner of programs. What nearly every one of them imports is loaded by now."""
    for name in _STAR_IMPORTS:
        import_module(name)
    return Program()


class Program:
    """Answers `{"code", "function"}` by loading a solution, `{}` by running it once."""

    def __init__(self) -> None:
        # a program that says open(0).read() closes the descriptor for those after it
        self._input, self._output = os.dup(0), os.dup(1)

    def __call__(self, message: dict[str, Any]) -> dict[str, Any]:
        try:
            if "code" in message:
                self._load(message["code"], message["function"])
                return {"ok": True}
            return {"ok": True, **self._run()}
        except MemoryError:
            raise
        except BaseException as error:  # noqa: BLE001 - also a program's own sys.exit
            return {"ok": False, "error": f"{type(error).__name__}: {error}"[:500]}

    def _load(self, code: str, function: str | None) -> None:
        self._reads_stdin = function is None
        tree = ast.parse(PRELUDE + "\n\n" + code) if function else _as_function(code)
        module = ModuleType("solution")
        exec(compile(tree, "<solution>", "exec"), module.__dict__)
        # a text search, as in LiveCodeBench: a program on standard input must not define one
        text = code if function else ast.unparse(tree)
        owner: Any = module.Solution() if "class Solution" in text else module
        self._call: Callable[..., Any] = getattr(owner, function or _WRAPPER)

    def _run(self) -> dict[str, Any]:
        for kept, standard in ((self._input, 0), (self._output, 1)):
            os.dup2(kept, standard)
            os.lseek(standard, 0, os.SEEK_SET)
        sys.stdin = open(0, encoding="utf-8", newline="\n", closefd=False)  # noqa: SIM115
        sys.stdout = printed = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        if not self._reads_stdin:
            arguments = [json.loads(line) for line in sys.stdin.read().split("\n")]
            return {"value": _tagged(self._call(*arguments))}
        try:
            self._call()
        except SystemExit:
            pass
        finally:
            for stream in (sys.stdout, printed):
                if isinstance(stream, io.IOBase) and not stream.closed:
                    stream.flush()
        return {}


def _as_function(code: str) -> ast.Module:
    """The program as one function after its imports; the main guard at its end is opened."""
    body = ast.parse(code).body
    last = body[-1] if body else None
    if isinstance(last, ast.If) and ast.unparse(last.test) == "__name__ == '__main__'":
        body = body[:-1] + last.body
    imports = [node for node in body if isinstance(node, ast.Import | ast.ImportFrom)]
    rest = [node for node in body if not isinstance(node, ast.Import | ast.ImportFrom)]
    wrapper = ast.parse(f"def {_WRAPPER}(): ...").body[0]
    assert isinstance(wrapper, ast.FunctionDef)
    wrapper.body = rest  # empty: compile() says so, and the program fails as it does there
    prelude = ast.parse(PRELUDE).body
    return ast.fix_missing_locations(ast.Module([*prelude, *imports, wrapper], type_ignores=[]))


def _tagged(value: Any) -> Any:
    """A returned value as JSON that keeps what `==` would see: tuples and key types stay apart."""
    if type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0:
        value = value.item()
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, list):
        return [_tagged(item) for item in value]
    if isinstance(value, tuple):
        return {"tuple": [_tagged(item) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[_tagged(key), _tagged(item)] for key, item in value.items()]}
    return {"other": type(value).__name__}
