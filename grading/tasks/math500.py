"""MATH-500: a formula, compared as text first and by sympy last.

Format: the prompt asks for `\\boxed{...}`. Rules: the graders of MATH (Hendrycks et al.) and
PRM800K, as the MLPerf DeepSeek-R1 reference uses them; their quirks are part of the figure.

`judge` may run for minutes and use gigabytes (`9**9**9**9` is a short answer), and sympy evaluates
what the model wrote, so it runs in a confined worker only (see `sandbox`).
"""

import re
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from grading.tasks import Verdict

_TEXT = re.compile(r"^\\text\{(.+?)\}$")
_UNITS = [  # removed one after the other; the order matters for "minuteseconds"
    re.compile(rf"{unit}(?:es)?s? *(?:\^[0-9]+)?")
    for unit in (
        *("degree", "cm", "centimeter", "meter", "mile", "second", "minute", "hour"),
        *("day", "week", "month", "year", "foot", "feet", "inch", "yard"),
    )
]
_FRACTION = re.compile(r"^-?[0-9]+.?/0*[1-9][0-9]*.?$")
_THOUSANDS = re.compile(r"(\d),(\d\d\d)($|\D)")
_BRACKETS = "()[]"


def extract(text: str) -> tuple[str, str] | None:
    """The content of the last `\\boxed{`, up to its closing brace; and the rule's name.

    None if there is no box, or the brace is not closed.
    """
    start = text.rfind(r"\boxed{")
    if start < 0:
        return None
    start += len(r"\boxed{")
    depth = 1
    for match in re.finditer(r"[{}]", text[start:]):
        depth += 1 if match[0] == "{" else -1
        if depth == 0:
            return text[start : start + match.start()].strip(), "boxed"
    return None


def judge(answer: str, truth: str) -> Verdict:
    """Whether two formulas are equal: in MATH's normal form, in PRM800K's, or by sympy."""
    if _as_math(answer) == _as_math(truth):
        return Verdict(True, "same text (MATH)")
    answer, truth = _as_prm(answer), _as_prm(truth)
    if answer == truth:
        return Verdict(True, "same text (PRM800K)")
    if not answer:
        return Verdict(False, "nothing is left (PRM800K)")
    answer_parts, truth_parts = _elements(answer), _elements(truth)
    if len(answer_parts) != len(truth_parts):
        return Verdict(False, "number of elements")
    if len(truth_parts) > 1 and (answer[0], answer[-1]) != (truth[0], truth[-1]):
        return Verdict(False, "brackets")
    verdict = Verdict(False, "")
    for pair in zip(answer_parts, truth_parts, strict=True):
        verdict = _judge_element(*pair)
        if not verdict.right:
            break
    return verdict


def _judge_element(answer: str, truth: str) -> Verdict:
    if _FRACTION.search(answer) and _FRACTION.search(truth):
        return Verdict(answer == truth, "fractions as written")
    if _is_integer(answer) != _is_integer(truth):
        return Verdict(False, "one is an integer")
    difference = f"({truth})-({answer})"
    if not _may_evaluate(difference):
        return Verdict(False, "not for sympy")
    return Verdict(_is_zero(difference), "sympy")


def _unwrap(text: str) -> str:
    match = _TEXT.search(text)
    return match[1] if match else text


# --- MATH's normal form


def _as_math(text: str) -> str:
    text = _unwrap(text.strip()).strip()
    try:
        return _canonical_latex(text)
    except (ValueError, IndexError):
        return text


def _canonical_latex(text: str) -> str:
    """One spelling of the common variants. Raises: ValueError, IndexError for malformed LaTeX."""
    for old, new in (
        ("\n", ""), ("\\!", ""), ("\\\\", "\\"), ("tfrac", "frac"), ("dfrac", "frac"),
        ("\\left", ""), ("\\right", ""), ("^{\\circ}", ""), ("^\\circ", ""), ("\\$", ""),
    ):  # fmt: skip
        text = text.replace(old, new)
    if "\\text{ " in text:  # units
        text, _unit = text.split("\\text{ ")
    text = text.replace("\\%", "").replace(" .", " 0.").replace("{.", "{0.")
    if text.startswith("."):
        text = "0" + text
    if text.count("=") == 1:
        name, value = text.split("=")
        text = value if len(name) <= 2 else text
    text = _brace_arguments(text, "\\sqrt", 1).replace(" ", "")
    text = _brace_arguments(text, "\\frac", 2)
    if text == "0.5":
        return "\\frac{1}{2}"
    return _slash_to_fraction(text)


def _brace_arguments(text: str, command: str, count: int) -> str:
    """Put braces around single-character arguments: `\\frac12` becomes `\\frac{1}{2}`."""
    head, *rest = text.split(command)
    done = [head]
    for tail in rest:
        if tail[0] != "{":
            if len(tail) < count:
                return text
            for position in range(count):
                # an argument with its braces has three characters
                at = 3 * position
                if tail[at] != "{":
                    tail = f"{tail[:at]}{{{tail[at]}}}{tail[at + 1 :]}"
        done.append(tail)
    return command.join(done)


def _slash_to_fraction(text: str) -> str:
    if text.count("/") != 1:
        return text
    try:
        numerator, denominator = map(int, text.split("/"))
    except ValueError:
        return text
    if text != f"{numerator}/{denominator}":
        return text
    return f"\\frac{{{numerator}}}{{{denominator}}}"


# --- PRM800K's normal form


def _as_prm(text: str) -> str:
    text = _unwrap(text)
    for old, new in (
        ("\\%", "%"), ("\\$", "$"), ("$", ""), ("%", ""), (" or ", " , "), (" and ", " , "),
        ("million", "*10^6"), ("billion", "*10^9"), ("trillion", "*10^12"),
    ):  # fmt: skip
        text = text.replace(old, new)
    for unit in _UNITS:
        text = unit.sub("", text)
    text = re.sub(r"\^ *\\circ", "", text)
    if text.startswith("{") and text.endswith("}"):
        text = text[1:-1]
    text = re.sub(r",\\! *", "", text)
    if _is_integral(text):
        text = str(round(float(text)))
    if "\\" in text:
        text = _plain_text(text)
    text = re.sub("- *", "-", text)
    text = re.sub("([0-9]) +([0-9])", r"\1+\2", text)  # a mixed number is a sum
    text = re.sub("[ {}]", "", text).lower()
    return str(int(float(text.replace(",", "")))) if _is_integer(text) else text


def _plain_text(latex: str) -> str:
    """LaTeX as plain text, in sympy's syntax. LaTeX that can't be parsed is returned unchanged."""
    from pylatexenc.latex2text import LatexNodes2Text

    spaced = re.sub(r"\\[td]frac", r"\\frac", latex).replace("\\frac", " \\frac")
    try:
        text = LatexNodes2Text().latex_to_text(spaced)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - PRM800K's rule: a formula that can't be parsed is kept
        return latex
    for symbol, word in zip("√π∞∪·×", ("sqrt", "pi", "inf", "U", "*", "*"), strict=True):
        text = text.replace(symbol, word)
    return str(text.strip())


def _elements(text: str) -> list[str]:
    """The elements of a tuple or an interval; anything else is one element."""
    text = _without_thousands(text)
    if not text:
        return []
    inside = text[1:-1]
    if inside and text[0] in _BRACKETS and text[-1] in _BRACKETS:
        if any(bracket in inside for bracket in _BRACKETS):
            return [text]
        return [element.strip() for element in inside.split(",")]
    return [text]


def _without_thousands(text: str) -> str:
    while (shorter := _THOUSANDS.sub(r"\1\2\3", text)) != text:
        text = shorter
    return text


def _is_integral(text: str) -> bool:
    try:
        number = float(text)
        return abs(number - round(number)) <= 1e-7
    except (ValueError, OverflowError):
        return False


def _is_integer(text: str) -> bool:
    return _is_integral(_without_thousands(text))


# --- by sympy


def _is_zero(difference: str) -> bool:
    import sympy
    from sympy.parsing import sympy_parser

    transformations = (
        *sympy_parser.standard_transformations,
        sympy_parser.implicit_multiplication_application,
    )
    try:
        parsed: Any = sympy_parser.parse_expr(
            difference.replace("^", "**"), transformations=transformations
        )
        return bool(sympy.simplify(parsed) == 0)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - PRM800K's rule: not equal if sympy can't simplify it
        return False


def _may_evaluate(expression: str) -> bool:
    """Whether an expression is simple enough for sympy: two letters at most, small powers."""
    letters = {
        character
        for character in expression.replace("sqrt", "").replace("frac", "")
        if character.isalpha()
    }
    if len(letters) > 2 or "^{" in expression or "^(" in expression:
        return False
    return not re.search(r"\^[0-9]+\^|\^[0-9][0-9]+", expression)


# --- the worker

# Judging these loads the modules that most formulas need and fills their caches, before the time of
# a row starts to count and before processes are forked.
_WARM_UP = (
    (r"(x+1)(x+2)", r"x^2+3x+2"),
    (r"2\sqrt{3}", r"\sqrt{3}\cdot2"),
    (r"\frac{1}{\sqrt{2}}", r"\frac{\sqrt{2}}{2}"),
)


def handler() -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The handler of a confined worker: replies to `{"answer", "truth"}` with `{"right", "rule"}`.

    And to `{"forms": formula}` with the formula's normal forms, `{"MATH", "PRM800K"}`.
    """
    for answer, truth in _WARM_UP:
        judge(answer, truth)

    def reply(message: dict[str, Any]) -> dict[str, Any]:
        if "forms" in message:
            return {"MATH": _as_math(message["forms"]), "PRM800K": _as_prm(message["forms"])}
        return asdict(judge(message["answer"], message["truth"]))

    return reply
