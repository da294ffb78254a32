"""MATH-500: a formula, compared as text first and by sympy last.

Format: the prompt asks for `\\boxed{...}`. Rules: the graders of MATH (Hendrycks et al.) and
PRM800K, as the MLPerf DeepSeek-R1 reference uses them; the oddities are part of the figure.

`judge` may run for minutes and eat gigabytes (`9**9**9**9` is a short answer) and lets sympy
evaluate what the model wrote, so it runs in a confined worker only (see `sandbox`).
"""

import re
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from grading.tasks import Verdict

_TEXT = re.compile(r"^\\text\{(.+?)\}$")
_UNITS = [  # dropped one after the other: which goes first shows in "minuteseconds"
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
    """What the last `\\boxed{` holds up to its own closing brace, and the rule's name.

    None where that brace is never closed.
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


def judge(given: str, truth: str) -> Verdict:
    """Whether two formulas are the same: as MATH writes them, as PRM800K does, then by sympy."""
    if _as_math(given) == _as_math(truth):
        return Verdict(True, "same text (MATH)")
    given, truth = _as_prm(given), _as_prm(truth)
    if given == truth:
        return Verdict(True, "same text (PRM800K)")
    if not given:
        return Verdict(False, "nothing is left (PRM800K)")
    given_parts, truth_parts = _elements(given), _elements(truth)
    if len(given_parts) != len(truth_parts):
        return Verdict(False, "number of elements")
    if len(truth_parts) > 1 and (given[0], given[-1]) != (truth[0], truth[-1]):
        return Verdict(False, "brackets")
    verdict = Verdict(False, "")
    for pair in zip(given_parts, truth_parts, strict=True):
        verdict = _judge_element(*pair)
        if not verdict.right:
            break
    return verdict


def _judge_element(given: str, truth: str) -> Verdict:
    if _FRACTION.search(given) and _FRACTION.search(truth):
        return Verdict(given == truth, "fractions as written")
    if _is_integer(given) != _is_integer(truth):
        return Verdict(False, "one is an integer")
    difference = f"({truth})-({given})"
    if not _may_evaluate(difference):
        return Verdict(False, "not for sympy")
    return Verdict(_is_zero(difference), "sympy")


def _unwrapped(text: str) -> str:
    match = _TEXT.search(text)
    return match[1] if match else text


# --- as MATH writes a formula


def _as_math(text: str) -> str:
    text = _unwrapped(text.strip()).strip()
    try:
        return _canonical_latex(text)
    except (ValueError, IndexError):
        return text


def _canonical_latex(text: str) -> str:
    """One spelling of the usual variants. ValueError, IndexError: the formula is cut or odd."""
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
    text = _braced_arguments(text, "\\sqrt", 1).replace(" ", "")
    text = _braced_arguments(text, "\\frac", 2)
    if text == "0.5":
        return "\\frac{1}{2}"
    return _slash_to_fraction(text)


def _braced_arguments(text: str, command: str, count: int) -> str:
    """Put braces around single-character arguments: `\\frac12` becomes `\\frac{1}{2}`."""
    head, *rest = text.split(command)
    done = [head]
    for tail in rest:
        if tail[0] != "{":
            if len(tail) < count:
                return text
            for position in range(count):
                # three characters an argument once it has its braces
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


# --- as PRM800K writes a formula


def _as_prm(text: str) -> str:
    text = _unwrapped(text)
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
    """LaTeX as plain text, in sympy's words. What can't be read is given back as it is."""
    from pylatexenc.latex2text import LatexNodes2Text

    spaced = re.sub(r"\\[td]frac", r"\\frac", latex).replace("\\frac", " \\frac")
    try:
        text = LatexNodes2Text().latex_to_text(spaced)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - the rule: a formula that can't be read stays as written
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
    except Exception:  # noqa: BLE001 - the rule: what sympy can't read or simplify is not equal
        return False


def _may_evaluate(expression: str) -> bool:
    """Whether an expression is plain enough: two letters at most, no large or odd powers."""
    letters = {
        character
        for character in expression.replace("sqrt", "").replace("frac", "")
        if character.isalpha()
    }
    if len(letters) > 2 or "^{" in expression or "^(" in expression:
        return False
    return not re.search(r"\^[0-9]+\^|\^[0-9][0-9]+", expression)


# --- the worker's side

# What these load and keep, most formulas need; so it is there before the clock of a row starts, and
# before the workers are forked.
_FIRST = (
    (r"(x+1)(x+2)", r"x^2+3x+2"),
    (r"2\sqrt{3}", r"\sqrt{3}\cdot2"),
    (r"\frac{1}{\sqrt{2}}", r"\frac{\sqrt{2}}{2}"),
)


def handler() -> Callable[[dict[str, Any]], dict[str, Any]]:
    """What a confined worker answers with: `{"given", "truth"}` by `{"right", "rule"}`.

    And `{"forms": formula}` by its spellings that are compared, as MATH and as PRM800K write it.
    """
    for given, truth in _FIRST:
        judge(given, truth)

    def answer(message: dict[str, Any]) -> dict[str, Any]:
        if "forms" in message:
            return {"MATH": _as_math(message["forms"]), "PRM800K": _as_prm(message["forms"])}
        return asdict(judge(message["given"], message["truth"]))

    return answer
