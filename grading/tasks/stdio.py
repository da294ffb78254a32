"""Standard input and output of a LiveCodeBench program, in one of two modes.

`reference`: LiveCodeBench's own runner replaces `sys.stdin` by a mock that makes correct programs
fail. It can't be iterated, `read` always returns the whole input, `buffer.readline` always returns
the first line. A program that bound `stdin` before the test has the real stream, which is empty
except for three patched methods: they return lines without line ends, and raise StopIteration after
the last one. `open` is mocked too, so descriptor 0 is not available. The official figure was made
with this runner, so this mode behaves exactly like it.

`fixed-stdio`: real streams, on two files of the grader.
"""

import builtins
import contextlib
import io
import os
import sys
from collections.abc import Callable
from typing import Any, TextIO


class _Input:
    """`sys.stdin` as in the public runner."""

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
    def close(self, _missing: Any) -> None:  # type: ignore[override]
        """Never closes: a call without arguments, as programs make it, is a TypeError."""


class Reference:
    """The mocks of the public runner, new ones for each run."""

    def __init__(self) -> None:
        self._real = sys.stdin

    def run(self, program: Callable[[], Any], _names: dict[str, Any], text: str) -> str:
        """The output for the input `text`. Raises: the program's exceptions, except SystemExit."""
        rest = iter(text.split("\n"))
        vars(self._real).update(  # on the instance: iteration does not use them
            read=lambda *_size: text,
            readline=lambda *_size: next(rest),
            readlines=lambda *_hint: text.split("\n"),
        )
        printed = _Output()

        def open_mock(*arguments: Any, **options: Any) -> Any:
            from unittest import mock  # imported here, as few programs call open

            return mock.mock_open(read_data=text)(*arguments, **options)

        mocks: tuple[tuple[Any, str, Any], ...] = (
            (builtins, "open", open_mock),
            (sys, "stdin", _Input(text)),
            (sys, "stdout", printed),
        )
        originals = [getattr(module, name, None) for module, name, _ in mocks]
        try:
            for module, name, mock in mocks:
                setattr(module, name, mock)
            with contextlib.suppress(SystemExit):
                program()
        finally:
            for (module, name, _), original in zip(mocks, originals, strict=True):
                setattr(module, name, original)
        return printed.getvalue()


class Fixed:
    """Streams on the descriptors 0 and 1, new ones for each run."""

    def __init__(self) -> None:
        # copies, since open(0).read() in a program closes descriptor 0
        self._input, self._output = os.dup(0), os.dup(1)
        self._streams = sys.stdin, sys.stdout = self._open()

    def run(self, program: Callable[[], Any], names: dict[str, Any], _text: str) -> None:
        """Run a program. `names`: its globals.

        Raises: the program's exceptions, except SystemExit.
        """
        old, self._streams = self._streams, self._open()
        sys.stdin, sys.stdout = self._streams
        for name, value in list(names.items()):
            for before, now in zip(old, self._streams, strict=True):
                if value is before:  # imported with "from sys import stdin"
                    names[name] = now
        try:
            with contextlib.suppress(SystemExit):
                program()
        finally:
            for stream in (sys.stdout, self._streams[1]):
                if isinstance(stream, io.IOBase) and not stream.closed:
                    stream.flush()

    def _open(self) -> tuple[TextIO, TextIO]:
        for copy, standard in ((self._input, 0), (self._output, 1)):
            os.dup2(copy, standard)
            os.lseek(standard, 0, os.SEEK_SET)
        return (
            open(0, encoding="utf-8", newline="\n", closefd=False),
            open(1, "w", encoding="utf-8", closefd=False),
        )


MODES: dict[str, Callable[[], Reference | Fixed]] = {"reference": Reference, "fixed-stdio": Fixed}
