"""A page's HTML, with a Content-Security-Policy that runs and loads nothing but what is in it."""

import base64
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from mlperf.page.text import duration, marked, number

HERE = Path(__file__).parent


def document(
    template: Path,
    title: str,
    values: Mapping[str, Any],
    scripts: Sequence[Path] = (),
    blocks: Iterable[tuple[str, Markup]] = (),
) -> Iterator[str]:
    """The page that a template makes of `values`, in pieces. It extends base.html.

    `scripts`: files of JavaScript, joined in this order. `blocks`: id and text of each block of
    data (see `blocks.py`).
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, HERE]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    environment.filters |= {"number": number, "duration": duration}
    style = (HERE / "page.css").read_text(encoding="utf-8")
    script = "\n".join(path.read_text(encoding="utf-8") for path in scripts)
    return environment.get_template(template.name).generate(
        values,
        title=title,
        policy=_policy(style, script),
        style=Markup(style),
        script=Markup(script),
        blocks=blocks,
    )


def _shown(value: object) -> object:
    """A template's value: text is marked, whoever wrote it, unless it is HTML already."""
    return value if isinstance(value, Markup) else marked(value)


def _policy(style: str, script: str) -> str:
    """Nothing is loaded, and no style or script runs but these, which are known by their hash."""
    sources = {
        "default-src": "'none'",
        "style-src": _source(style),
        "script-src": _source(script),
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in sources.items())


def _source(text: str) -> str:
    if not text:
        return "'none'"
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
