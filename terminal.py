"""Safe output on a terminal: control characters are escaped, and any encoding works.

Scripts print text from files and models, and a terminal executes escape sequences in it: they move
the cursor, rename the window, paste commands. A terminal that does not use UTF-8 can't encode much
of the text. So everything that a script prints or logs passes through the streams of `guard`.
"""

import io
import re
import reprlib
import sys
from collections.abc import Sequence
from typing import TextIO

# Control characters except tab and newline, line separators, bidirectional marks and controls, and
# lone surrogates. JavaScript reads the same pattern: see mlperf/page/data.js.
CONTROL = re.compile(
    "[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def aligned(rows: Sequence[Sequence[str]], numbers: range) -> list[str]:
    """A line for each row, its cells in columns; those of `numbers` are aligned to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if column in numbers else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def harmless(text: str) -> str:
    """The text with its control characters escaped, such as `\\x1b`."""
    return CONTROL.sub(_escape, text)


def one_line(text: str) -> str:
    """The text with control characters, newlines and tabs escaped."""
    return harmless(text).replace("\n", r"\n").replace("\t", r"\t")


def quoted(value: object, most: int = 100) -> str:
    """A value's repr for a message, on one line of about `most` characters.

    Any value is possible: what is nested too deeply or too long is omitted. NumPy scalars look like
    Python's.
    """
    if getattr(value, "shape", None) == ():
        value = value.item()  # type: ignore[attr-defined]
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = most
    short.maxlist = short.maxtuple = short.maxdict = short.maxset = short.maxfrozenset = 20
    short.maxlevel = 4
    try:
        text = harmless(short.repr(value))
    except ValueError:  # an integer with more digits than Python converts
        text = f"<{type(value).__name__} of too many digits>"
    return text if len(text) <= most else f"{text[: most // 2]} … {text[-most // 2 :]}"


def guard() -> None:
    """Make standard output and error escape control characters, and what they can't encode.

    `sys.__stdout__` and `sys.__stderr__` are not changed: progress bars need control characters.
    """
    sys.stdout = _guard(sys.stdout)
    sys.stderr = _guard(sys.stderr)


class _Harmless(io.TextIOWrapper):
    def write(self, text: str, /) -> int:
        super().write(harmless(text))
        return len(text)


def _guard(stream: TextIO) -> TextIO:
    if not isinstance(stream, io.TextIOWrapper):  # None if it is closed, or replaced by others
        return stream
    stream.flush()
    return _Harmless(
        stream.buffer,
        stream.encoding,
        "backslashreplace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _escape(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()
