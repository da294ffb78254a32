"""Pickles as cloudpickle, dill and joblib write them: python make.py

The files beside this one were made so by cloudpickle 3.1.3, dill 0.4.1 and joblib 1.6.0. Loading
those named `attack` would create a file named `attacked`; those named `frame` hold a plain frame.
"""

import operator
import os
import pathlib
from collections.abc import Callable, Iterator
from pathlib import Path

import cloudpickle  # type: ignore[import-not-found]
import dill  # type: ignore[import-not-found]
import joblib  # type: ignore[import-not-found]
import numpy as np
import pandas as pd

HERE = Path(__file__).parent
FRAME = pd.DataFrame(
    {
        "dataset": pd.Series(["gpqa", "aime"], dtype=object),
        "question": pd.Series(["q", "r"], dtype=object),
        "text_input": pd.Series(["What?", "Why?"], dtype=object),
        "ground_truth": pd.Series(["A", 7], dtype=object),
    }
)


class Attack:
    """Attacks its reader by `function` as it is loaded."""

    def __init__(self, function: Callable, *arguments: object) -> None:
        self.reduced = function, arguments

    def __reduce__(self) -> tuple:
        return self.reduced


class Stateful:
    """Attacks its reader by its own code, which cloudpickle and dill put into the file."""

    def __getstate__(self) -> dict:
        return {"a": 1}

    def __setstate__(self, state: dict) -> None:
        pathlib.Path("attacked").touch()


def touch() -> None:
    pathlib.Path("attacked").touch()


def attacks() -> Iterator[tuple[str, object]]:
    yield "system", Attack(os.system, "touch attacked")
    yield "path", Attack(pathlib.Path.touch, pathlib.PosixPath("attacked"))
    yield "eval", Attack(eval, "open('attacked', 'w')")
    yield "method", Attack(operator.methodcaller("touch"), pathlib.PosixPath("attacked"))
    yield "own-function", Attack(touch)
    yield "own-lambda", Attack(lambda: open("attacked", "w"))  # noqa: PTH123, SIM115
    yield "state", Stateful()


def values() -> Iterator[tuple[str, object]]:
    """Name and value of each file."""
    for name, attack in attacks():
        yield f"attack-{name}", attack
        yield f"attack-{name}-in-a-frame", FRAME.assign(a=pd.Series([attack, None], dtype=object))
    yield "a-lambda", lambda: 1
    yield "a-class", Stateful
    yield "a-function-in-a-frame", FRAME.assign(a=pd.Series([touch, None], dtype=object))


def main() -> None:
    for name, value in values():
        (HERE / f"cloudpickle-{name}.pkl").write_bytes(cloudpickle.dumps(value))
        (HERE / f"dill-{name}.pkl").write_bytes(dill.dumps(value, recurse=True))
    for name, value in attacks():
        if not name.startswith("own") and name != "state":
            joblib.dump(value, HERE / f"joblib-attack-{name}.pkl")
            frame = FRAME.assign(a=pd.Series([value, None], dtype=object))
            joblib.dump(frame, HERE / f"joblib-attack-{name}-in-a-frame.pkl", compress=("zlib", 3))
    joblib.dump({"a": np.arange(9)}, HERE / "joblib-an-array.pkl")
    joblib.dump(FRAME.assign(n=[1, 2]), HERE / "joblib-with-arrays.pkl")
    (HERE / "cloudpickle-frame.pkl").write_bytes(cloudpickle.dumps(FRAME))
    (HERE / "dill-frame.pkl").write_bytes(dill.dumps(FRAME))


if __name__ == "__main__":
    main()
