"""Answers to grade, made up in the shape of real ones: long reasoning, then a final answer.

Tasks come in the benchmark's proportions, lengths as reasoning models have them. One seed, one set.
"""

import base64
import json
import pickle
import random
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmark import MAX_NEW_TOKENS, TOKENS_PER_SAMPLE

SHARES = {"mmlu_pro": 2409, "aime": 932, "math500": 500, "gpqa": 198}  # LiveCodeBench: 349 of 4388
MEAN_TOKENS = round(TOKENS_PER_SAMPLE)
CHARACTERS = 4  # a token, of English and formulas
PUBLIC = 2  # tests of a problem that are shown, and small
SIZES = (10, 100, 1000, 2000)  # of the hidden tests' inputs
_PHRASES = (
    "So we need to check the condition again. ",
    "Wait, that is not quite right: let me recompute $x^2 - 5x + 6 = 0$. ",
    r"Then $\frac{a}{b} = \sqrt{3} + \left(\frac{1}{2}\right)^2$, which gives 1.98. ",
    "Option A says the rate doubles, option C that it stays the same. ",
    "Hmm, I should consider the boundary case where n = 0 (see above). ",
    "\n\nAlternatively, by symmetry, the sum over all i from 1 to 100 is 5050. ",
    "The answer can't be B, since a reaction of that kind needs 25 kJ/mol. ",
    r"Let me define \( f(n) = 3n + 7 \), so {f(1), f(2)} = {10, 13}. ",
)

Maker = Callable[[random.Random], tuple[str, str]]  # a final answer and the truth


def frame(rows: int, seed: int = 0) -> dict[str, list[Any]]:
    """Columns of a results frame without LiveCodeBench."""
    rng = random.Random(seed)
    tasks = rng.choices(list(SHARES), weights=list(SHARES.values()), k=rows)
    return _columns([_row(rng, task, *_FINALS[task](rng)) for task in tasks])


def programs(count: int, tests: int, path: Path, seed: int = 0) -> dict[str, list[Any]]:
    """Columns of a results frame of programs; their problems are written to `path`.

    Every other one has a named function; nine in ten are right.
    """
    rng = random.Random(seed)
    rows = []
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            sizes = [5 if test < PUBLIC else rng.choice(SIZES) for test in range(tests)]
            lists = [[rng.randrange(10**6) for _ in range(size)] for size in sizes]
            call = number % 2 == 1
            cases = [
                {
                    "input": json.dumps(values)
                    if call
                    else f"{len(values)}\n{' '.join(map(str, values))}\n",
                    "output": str(_inversions(values)),
                    "testtype": "functional" if call else "stdin",
                }
                for values in lists
            ]
            private = json.dumps(cases[PUBLIC:]).encode()
            packed = base64.b64encode(zlib.compress(pickle.dumps(private.decode())))
            row = {
                "question_id": str(number),
                "question_title": "Inversions",
                "question_content": "Count the inversions.",
                "platform": "atcoder",
                "contest_id": "none",
                "contest_date": "2024-01-01T00:00:00",
                "difficulty": "medium",
                "starter_code": "",
                "public_test_cases": json.dumps(cases[:PUBLIC]),
                "private_test_cases": packed.decode(),
                "metadata": json.dumps({"func_name": "count"} if call else {}),
            }
            file.write(json.dumps(row) + "\n")
            code = _CALLED if call else _READING
            if rng.random() < 0.1:
                code = code.replace("total += ", "total = ")
            rows.append(_row(rng, "livecodebench", f"```python\n{code}```\n", str(number)))
    return _columns(rows)


def _row(rng: random.Random, task: str, final: str, truth: str) -> tuple[str, str, str, int]:
    wanted = max(200, min(MAX_NEW_TOKENS, round(MEAN_TOKENS * rng.lognormvariate(-0.32, 0.8))))
    average = sum(map(len, _PHRASES)) // len(_PHRASES)
    reasoning = "".join(rng.choices(_PHRASES, k=wanted * CHARACTERS // average))
    return task, truth, f"<think>\n{reasoning}\n</think>\n\n{final}", wanted


def _columns(rows: list[tuple[str, str, str, int]]) -> dict[str, list[Any]]:
    names = ("dataset", "ground_truth", "model_output", "tok_model_output_len")
    return {name: list(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}


_COUNT = """def count({self}values):
    import bisect
    total, seen = 0, []
    for value in reversed(values):
        position = bisect.bisect_left(seen, value)
        total += position
        seen.insert(position, value)
    return total
"""
_READING = (
    _COUNT.format(self="")
    + "\nif __name__ == '__main__':\n"
    + "    input()\n    print(count(list(map(int, input().split()))))\n"
)
_CALLED = "class Solution:\n" + "".join(
    f"    {line}\n" for line in _COUNT.format(self="self, ").splitlines()
)


def _inversions(values: list[int]) -> int:
    names: dict[str, Any] = {}
    exec(_COUNT.format(self=""), names)
    result: int = names["count"](values)
    return result


def _choice(letters: str) -> Maker:
    def final(rng: random.Random) -> tuple[str, str]:
        answer, truth = rng.choice(letters), rng.choice(letters)
        answer = truth if rng.random() < 0.7 else answer
        form = rng.choice(("ANSWER: {}", "**ANSWER: {}**", "Final Answer: {}", "It is ({})."))
        return f"So that is it.\n{form.format(answer)}", truth

    return final


def _integer(rng: random.Random) -> tuple[str, str]:
    truth = rng.randrange(1000)
    answer = truth if rng.random() < 0.75 else rng.randrange(1000)
    return rng.choice((rf"\[\boxed{{{answer}}}\]", f"Answer: {answer}")), str(truth)


def _formula(rng: random.Random) -> tuple[str, str]:
    a, b, c = rng.randrange(2, 9), rng.randrange(2, 9), rng.randrange(2, 30)
    answer, truth = rng.choice(
        (
            (f"{a * b}", f"{a * b}"),
            (f"{a * 1000 + c:,}", f"{a * 1000 + c}"),
            (rf"\frac{{{a}}}{{{b + 10}}}", rf"\frac{{{a}}}{{{b + 10}}}"),
            (rf"\dfrac{{{a}}}{{{c + 30}}}", rf"\frac{{{a}}}{{{c + 30}}}"),
            (f"{a}/{c + 31}", rf"\frac{{{a}}}{{{c + 31}}}"),
            (rf"{a}\sqrt{{{b}}}", rf"\sqrt{{{b}}}\cdot{a}"),
            (rf"\frac{{\sqrt{{{a}}}}}{{{b}}}", rf"\frac{{{a}}}{{{b}\sqrt{{{a}}}}}"),
            (f"(x+{a})(x+{b})", f"x^2+{a + b}x+{a * b}"),
            (rf"\left({a}, {b}, -{c}\right)", f"({a},{b},-{c})"),
            (rf"({a}, \frac{{\pi}}{{{b}}})", rf"\left({a},\frac{{\pi}}{{{b}}}\right)"),
            (rf"[{a},\infty)", rf"\left[{a}, \infty\right)"),
            (f"y = {a}x+{c}", f"{a}x+{c}"),
            (rf"{c}^\circ", f"{c}"),
            (rf"\text{{{a} and {b}}}", f"{a},{b}"),
            (rf"\{{{a}, {b}\}}", rf"\left\{{{a},{b}\right\}}"),
            (f"{c}", f"{c + 1}"),
            (rf"{a}\pi", rf"{a + 1}\pi"),
            (f"x^{a}+{b}", f"x^{a}+{b + 1}"),
        )
    )  # fmt: skip
    return rf"Therefore $\boxed{{{answer}}}$.", truth


_FINALS: dict[str, Maker] = {
    "mmlu_pro": _choice("ABCDEFGHIJ"),
    "gpqa": _choice("ABCD"),
    "aime": _integer,
    "math500": _formula,
}
