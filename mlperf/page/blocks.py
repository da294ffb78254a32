"""Data in a page: JSON, compressed, in elements that the browser neither runs nor shows."""

import base64
import gzip
import json
from typing import Any

from markupsafe import Markup

LEVEL = 6  # of gzip; 9 takes twice the time to save a hundredth


def block(value: Any) -> Markup:
    """A JSON value, compressed by gzip, in base64. `block` of data.js reads it."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # a lone surrogate has no UTF-8, and becomes the escape that JSON has for it
    data = gzip.compress(text.encode("utf-8", "backslashreplace"), LEVEL, mtime=0)
    return Markup(base64.b64encode(data).decode())
