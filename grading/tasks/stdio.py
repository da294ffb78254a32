"""Standard input and output as a LiveCodeBench program finds them, in one of two modes.

`reference`: LiveCodeBench's own runner puts a stand-in at `sys.stdin` that fails correct programs.
It can't be iterated, `read` gives the whole input at any time, `buffer.readline` the first line for
ever. Whoever took `stdin` before the test began holds the real one, which is empty save for three
methods that know the input, lines without their ends, StopIteration after the last. `open` finds
nothing on descriptor 0. The official figure was made that way, so this behaves as it does.

`fixed-stdio`: the real thing, on two files of the other side's.
"""

import builtins
import contextlib
import io
import os
import sys
from collections.abc import Callable
from typing import Any, TextIO


class _Input:
    """`sys.stdin` as the public runner's programs see it."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._stream = io.StringIO(text)
        self.buffer = _Buffer(text.encode())

    def read(self, *_size: Any) -> str:
        return self._text

    def readlines(self, *_hint: Any) -> list[str]:
        return self._text.split("\n")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Buffer:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(self, *_size: Any) -> bytes:
        return self._data

    def readline(self, *_size: Any) -> bytes:
        return self._data.split(b"\n")[0] + b"\n"


class _Output(io.StringIO):
    def close(self, _nobody_gives_this: Any) -> None:  # type: ignore[override]
        """Never closes; called as usual it is a TypeError."""


class Reference:
    """The stand-ins of the public runner, new ones a run."""

    def __init__(self) -> None:
        self._real = sys.stdin

    def run(self, program: Callable[[], Any], _names: dict[str, Any], text: str) -> str:
        """What is printed on input `text`. Raises: those of the program, save SystemExit."""
        rest = iter(text.split("\n"))
        vars(self._real).update(  # of the object: its iteration does not call them
            read=lambda *_size: text,
            readline=lambda *_size: next(rest),
            readlines=lambda *_hint: text.split("\n"),
        )
        printed = _Output()

        def open_stand_in(*arguments: Any, **options: Any) -> Any:
            from unittest import mock  # few programs come here, and all would carry its modules

            return mock.mock_open(read_data=text)(*arguments, **options)

        stand_ins: tuple[tuple[Any, str, Any], ...] = (
            (builtins, "open", open_stand_in),
            (sys, "stdin", _Input(text)),
            (sys, "stdout", printed),
        )
        real = [getattr(module, name, None) for module, name, _ in stand_ins]
        try:
            for module, name, stand_in in stand_ins:
                setattr(module, name, stand_in)
            with contextlib.suppress(SystemExit):
                program()
        finally:
            for (module, name, _), before in zip(stand_ins, real, strict=True):
                setattr(module, name, before)
        return printed.getvalue()


class Fixed:
    """Streams on the descriptors 0 and 1, new ones a run."""

    def __init__(self) -> None:
        # a program that says open(0).read() closes the descriptor for those after it
        self._input, self._output = os.dup(0), os.dup(1)
        self._streams = sys.stdin, sys.stdout = self._open()

    def run(self, program: Callable[[], Any], names: dict[str, Any], _text: str) -> None:
        """`names`: the program's globals. Raises: those of the program, save SystemExit."""
        old, self._streams = self._streams, self._open()
        sys.stdin, sys.stdout = self._streams
        for name, value in list(names.items()):
            for before, now in zip(old, self._streams, strict=True):
                if value is before:  # the program says "from sys import stdin"
                    names[name] = now
        try:
            with contextlib.suppress(SystemExit):
                program()
        finally:
            for stream in (sys.stdout, self._streams[1]):
                if isinstance(stream, io.IOBase) and not stream.closed:
                    stream.flush()

    def _open(self) -> tuple[TextIO, TextIO]:
        for kept, standard in ((self._input, 0), (self._output, 1)):
            os.dup2(kept, standard)
            os.lseek(standard, 0, os.SEEK_SET)
        return (
            open(0, encoding="utf-8", newline="\n", closefd=False),
            open(1, "w", encoding="utf-8", closefd=False),
        )


MODES: dict[str, Callable[[], Reference | Fixed]] = {"reference": Reference, "fixed-stdio": Fixed}
