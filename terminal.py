"""What reaches a terminal: any text in any encoding, and nothing that steers it.

Scripts quote what files hold and models write, and a terminal obeys escape sequences in it: they
move the cursor, rename the window, paste commands. And a terminal that is not of UTF-8 has no bytes
for much of it. So all that a script prints or logs passes through `guard`'s streams.
"""

import io
import re
import reprlib
import sys
from typing import TextIO

# Control characters but for the tab and the line's end, and what turns the order of letters
_STEERING = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def harmless(text: str) -> str:
    """A text whose control characters are spelled out: `\\x1b` for an escape."""
    return _STEERING.sub(_spelled, text)


def one_line(text: str) -> str:
    """`harmless`, and line ends and tabs are spelled out too."""
    return harmless(text).replace("\n", r"\n").replace("\t", r"\t")


def quoted(value: object, most: int = 100) -> str:
    """A value as a message quotes it: on one line of about `most` characters, NumPy's as Python's.

    However large it is, and however often it holds itself: what is too deep or too long is left
    out.
    """
    if getattr(value, "shape", None) == ():
        value = value.item()  # type: ignore[attr-defined]
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = most
    short.maxlist = short.maxtuple = short.maxdict = short.maxset = short.maxfrozenset = 20
    short.maxlevel = 4
    try:
        text = harmless(short.repr(value))
    except ValueError:  # thousands of digits
        text = f"<{type(value).__name__} of too many digits>"
    return text if len(text) <= most else f"{text[: most // 2]} … {text[-most // 2 :]}"


def guard() -> None:
    """Have standard output and error print harmless text only, whatever their encoding.

    `sys.__stdout__` and `sys.__stderr__` stay as they are: progress bars steer the terminal.
    """
    sys.stdout = _guarded(sys.stdout)
    sys.stderr = _guarded(sys.stderr)


class _Harmless(io.TextIOWrapper):
    def write(self, text: str, /) -> int:
        super().write(harmless(text))
        return len(text)


def _guarded(stream: TextIO) -> TextIO:
    if not isinstance(stream, io.TextIOWrapper):  # None where it is closed; another's stand-in
        return stream
    stream.flush()
    return _Harmless(
        stream.buffer,
        stream.encoding,
        "backslashreplace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _spelled(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()
