"""Texts and numbers as a page shows them."""

import math

from markupsafe import Markup, escape

from terminal import CONTROL


def marked(text: object) -> Markup:
    """Text for a page: HTML is escaped, and what would be invisible is shown as its code point.

    That is control characters, bidirectional marks and lone surrogates. `marked` of data.js does
    the same in the browser.
    """
    parts: list[Markup] = []
    start = 0
    text = str(text)
    for match in CONTROL.finditer(text):
        code = Markup('<span class="control">U+{:04X}</span>').format(ord(match[0]))
        parts += [escape(text[start : match.start()]), code]
        start = match.end()
    return Markup("").join([*parts, escape(text[start:])])


def number(value: float | None, digits: int = 4) -> str:
    """A number with at most `digits` significant digits, but with all before the point.

    Thousands are separated by commas; a dash is a value that is not known.
    """
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    decimals = max(digits - 1 - math.floor(math.log10(abs(value))), 0)
    text = f"{value:,.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def duration(seconds: float | None) -> str:
    """A time such as `9.3 s`, `12 min 5 s` or `3 h 20 min`."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    if seconds < 60:
        return f"{number(seconds, 3)} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
