"""Random texts and truths in the rules' own vocabulary, for every extractor and judge.

No exception, no answer over its time limit, and texts of any length.
"""

import math
import time
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from grading.sandbox.inside.limits import Limits
from grading.sandbox.process import Confined
from grading.sandbox.sandbox import Sandbox
from grading.sandbox.types import ProcessEnded, TimeLimit
from grading.tasks import aime, choice, livecodebench, math500, outputs
from tests.effort import cases

MATH_LIMIT_S = 2.0
PAIRS = 20  # of formulas in an example
WORDS = [
    *("ANSWER", "answer:", "Answer: ", "FINAL", "FINAL ANSWER", "anſwer", "ı", "İ", "ſ", "\u212a"),
    *("A", "b", "I", "J", "K", "(", ")", "[", "]", "['", "']", ":", "=", ".", ",", "*", "_", "'"),
    *("0", "42", "999", "1000", "042", "٤", "４", "²", "½", "1/2", "0.5", ".5", "1e9", "1,000"),
    *(r"\boxed{", "}", "{", "\\", r"\n", r"\'", "```python", "```", "3\n", "\n", "\t", " ", "\x1c"),
    *("\u00a0", "\u3000", "\0", "\ud800", "é", "x", "y", "n", "pi", "i", "e", "+", "-", "/", "^"),
    *(
        "**",
        "!",
        "%",
        "$",
        "|",
        "&",
        "~",
        "#",
        "<",
        r"\frac",
        r"\frac12",
        r"\dfrac{a}{b}",
        r"\sqrt",
    ),
    *(r"\sqrt3", r"\text{", r"\text{ cm}", r"\left(", r"\right)", r"^\circ", r"\%", r"\$", r"\!"),
    *(r"\pi", r"\infty", r"\cup", r"\cdot", r"\begin{pmatrix}", r"\end{pmatrix}", r"\\", "√", "π"),
    *("million", "degrees", "inches", " or ", " and ", "inf", "nan", "lambda", "if", "ff(", "True"),
]
TEXT = st.lists(st.sampled_from(WORDS) | st.text(max_size=3), max_size=10).map("".join)
TRUTH = (
    TEXT
    | st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.binary(max_size=3)
    | st.sampled_from([np.int64(42), np.float64(42), np.float32("nan"), np.str_("B"), Decimal(42)])
    | st.lists(st.integers(), max_size=2)
)
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["one", "int", "tuple", "dict", "complex", "decimal", "fraction", "x"]),
            inner,
            max_size=2,
        )
    ),
    max_leaves=4,
)
many = settings(deadline=None, suppress_health_check=list(HealthCheck), database=None)


def _extract_and_compare(text: str, truth: object, value: object) -> None:
    text = text.strip()
    for task, letters in (("gpqa", "ABCD"), ("mmlu_pro", "ABCDEFGHIJİ")):
        extracted = choice.extract(text, task)
        assert extracted is None or extracted[0] in letters
        if extracted:
            assert choice.judge(extracted[0], truth).right in (True, False)
    number = aime.extract(text)
    assert number is None or 0 <= number[0] <= 999
    assert aime.judge(number[0] if number else 42, truth).right in (True, False)
    for extracted in (math500.extract(text), livecodebench.extract(text)):
        assert extracted is None or extracted[0] in text
    assert outputs.same_output(text, str(truth)) in (True, False)
    assert outputs.same_output(text, text) is True
    assert outputs.same_value(value, truth) in (True, False)


@settings(many, max_examples=500)
@given(
    st.lists(st.sampled_from(WORDS[:36]) | st.sampled_from([r"\n", r"\'", "\n", "é"]), max_size=12),
    st.integers(0, choice._END + 20),
    st.sampled_from(["y", " ", r"\n", "a ", "\\"]),
)
def test_an_answer_is_the_last_wherever_in_the_text_it_stands(
    words: list[str], padding: int, filler: str
) -> None:
    words = ["ANSWER: C ", *words, filler * padding]
    whole = "".join(words).replace(r"\n", "\n").replace(r"\'", "'")
    for task, pattern in choice._ANSWER.items():
        letters = pattern.findall(whole)
        if task == "mmlu_pro":
            letters = letters or choice._LONE_LETTER.findall(whole)
        extracted = choice.extract("".join(words), task)
        assert (extracted and extracted[0]) == (letters[-1].upper() if letters else None)


class _Worker:
    """A process that compares formulas, replaced whenever it is killed."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._process: Confined | None = None

    def check(self, given_text: str, truth: object) -> None:
        if self._process is None:
            self._process = self._sandbox.start("grading.tasks.math500", Limits(memory=1 << 30))
        try:
            reply = self._process.ask({"answer": given_text, "truth": truth}, MATH_LIMIT_S)
        except TimeLimit:
            self.close()
        except ProcessEnded as error:
            pytest.fail(f"the worker died of {given_text!r} and {truth!r}: {error}")
        else:
            assert "error" in reply or (reply["right"] in (True, False) and reply["rule"])

    def close(self) -> None:
        if self._process is not None:
            self._process.close()
            self._process = None


def _compare_formulas(sandbox: Sandbox, examples: int) -> None:
    worker = _Worker(sandbox)

    @given(st.lists(st.tuples(TEXT, TEXT), min_size=PAIRS, max_size=PAIRS))
    @settings(many, max_examples=examples // PAIRS)
    def check(pairs: list[tuple[str, str]]) -> None:
        for given_text, truth in pairs:
            worker.check(given_text, truth)

    try:
        check()
    finally:
        worker.close()


@given(TEXT, TRUTH, VALUE)
@settings(many, max_examples=300)
def test_extractors_and_comparers_never_raise(text: str, truth: object, value: object) -> None:
    _extract_and_compare(text, truth, value)


@pytest.mark.slow
@given(TEXT, TRUTH, VALUE)
@settings(many, max_examples=cases(2_000, 20_000))
def test_extractors_and_comparers_never_raise_on_thousands(
    text: str, truth: object, value: object
) -> None:
    _extract_and_compare(text, truth, value)


def test_formulas_are_compared_in_their_time(sandbox: Sandbox) -> None:
    _compare_formulas(sandbox, 400)


@pytest.mark.slow
def test_thousands_of_formulas_are_compared_in_their_time(sandbox: Sandbox) -> None:
    _compare_formulas(sandbox, cases(2_000, 20_000))


UNITS = (" ", "{", "}", "\\", "9", "`", "\n", "A ", "(", "'", "\u3000", ".", "/", "=", ",", "1,")
HEADS = ("", "ANSWER", "FINAL", "Answer:", "ANSWER: (", r"\boxed{", r"\boxed{9", "```python", "['")
REPEATED = ("ANSWER", "FINAL ", "Answer:", "Answer:9", r"\boxed{", r"\boxed{9", "ANSWER: ", "a-")


@pytest.mark.parametrize("unit", UNITS + REPEATED)
def test_long_texts_are_read_in_linear_time(unit: str) -> None:
    for head in HEADS:
        text = head + unit * math.ceil(200_000 / len(unit)) + "?"
        for extract in (
            aime.extract,
            math500.extract,
            livecodebench.extract,
            lambda text: choice.extract(text, "gpqa"),
            lambda text: choice.extract(text, "mmlu_pro"),
            lambda text: outputs.same_output(text, text.upper() + " 1"),
        ):
            began = time.thread_time()
            extract(text)
            assert time.thread_time() - began < 1
