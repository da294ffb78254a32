"""Text from files and models is text in a page, and all of it can be seen."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlperf.page.text import duration, marked, number


@given(st.text(st.characters(exclude_categories=[])))
def test_marked_text_has_no_markup_and_nothing_invisible_of_its_own(text: str) -> None:
    shown = marked(text).replace('<span class="control">', "").replace("</span>", "")
    assert "<" not in shown
    assert '"' not in shown
    shown.encode()  # no lone surrogate is left
    assert not {"\x1b", "\r", "\u202e", "\u200f", "\u2066", "\x00"} & set(shown)


def test_what_is_invisible_is_a_code_point() -> None:
    assert marked("a\u202e<b>\ud800\n") == (
        'a<span class="control">U+202E</span>&lt;b&gt;<span class="control">U+D800</span>\n'
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (float("nan"), "–"),
        (float("inf"), "–"),
        (0, "0"),
        (4388, "4,388"),
        (17_051_234.4, "17,051,234"),
        (81.3582, "81.36"),
        (0.01234, "0.01234"),
        (1500.0, "1,500"),
        (-2.5, "-2.5"),
    ],
)
def test_numbers(value: float | None, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "–"),
        (9.26, "9.26 s"),
        (59.999, "60 s"),
        (725.2, "12 min 5 s"),
        (12_000, "3 h 20 min"),
    ],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text
