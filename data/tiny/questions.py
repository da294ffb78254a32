"""The questions of the tiny data set: five tasks that a small model can reason through.

Each task has the name and the answer format of an MLPerf task, with questions for a model of a few
million parameters. A question has the reasoning and the answer that the model is trained on. A hash
of a question's text decides whether it belongs to the training or to the data set, so no row of the
data set can have been seen in training, whatever the seeds.
"""

import hashlib
import itertools
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import gcd

THINK_END = "</think>"
LETTERS = "ABCDEFGHIJ"
GROWN_AFTER = 4000  # questions of each task until training uses all sizes
HELD_OUT = 1 / 16  # fraction of all questions that training never sees


@dataclass(frozen=True)
class Question:
    """One question with its worked answer."""

    dataset: str  # MLPerf's name of the task
    question: str
    text_input: str  # the question and the instructions
    reasoning: str
    answer: str
    ground_truth: str
    metric: str
    problem: dict[str, str] | None = None  # LiveCodeBench's schema

    @property
    def target(self) -> str:
        """The text that the model has to generate after `<think>` and a newline."""
        return f"{self.reasoning}\n{THINK_END}\n\n{self.answer}"

    @property
    def held_out(self) -> bool:
        """Whether the question belongs to the data set and not to training."""
        digest = hashlib.sha256(self.text_input.encode()).digest()
        return int.from_bytes(digest[:4], "big") < HELD_OUT * 2**32


def _boxed(dataset: str, question: str, steps: list[str], truth: str) -> Question:
    return Question(
        dataset=dataset,
        question=question,
        text_input=f"{question}\nPut the answer in \\boxed{{}}.",
        reasoning="\n".join(steps),
        answer=f"\\boxed{{{truth}}}",
        ground_truth=truth,
        metric="exact_match",
    )


def aime(rng: random.Random, size: int) -> Question:
    """A chain of additions and subtractions, or a remainder by long division; from 0 to 99.

    Each line of the reasoning has the rest of the problem: the next one needs only this line.
    """
    if rng.random() < 0.6:
        value = rng.randint(1, 20)
        terms = []
        total = value
        for _ in range(size):
            term = rng.randint(1, 9)
            term = -term if total > 80 or (total >= term and rng.random() < 0.4) else term
            total += term
            terms.append(term)
        steps = [_chain(value, terms)]
        while terms:
            value += terms.pop(0)
            steps.append(_chain(value, terms))
        return _boxed("aime1983", f"Find {steps[0]}.", steps[1:], str(value))
    divisor = rng.randint(2, 9)
    digits = str(rng.randint(10**size, 10 ** (size + 1) - 1))
    rest, steps = digits, []
    while len(rest) > 1:
        part = int(rest[:2])
        steps.append(f"{rest}: {part}={divisor}*{part // divisor}+{part % divisor}")
        rest = str(part % divisor) + rest[2:]
    remainder = str(int(rest) % divisor)
    question = f"Find the remainder when {digits} is divided by {divisor}."
    return _boxed("aime1983", question, [*steps, remainder], remainder)


def _chain(value: int, terms: list[int]) -> str:
    return str(value) + "".join(f"{term:+d}" for term in terms)


def _fraction(top: int, bottom: int) -> str:
    return f"\\frac{{{top}}}{{{bottom}}}"


def _reduce(top: int, bottom: int) -> tuple[list[str], str]:
    """The steps that reduce a positive fraction, and the result."""
    factor = gcd(top, bottom)
    low, high = top // factor, bottom // factor
    steps = [f"{top}/{factor}={low}", f"{bottom}/{factor}={high}"]
    return steps, str(low) if high == 1 else _fraction(low, high)


def math500(rng: random.Random, size: int) -> Question:
    """A fraction to reduce, a linear equation, or a polynomial at a point."""
    kind = rng.randrange(3)
    if kind == 0:
        factor = rng.randint(2, 3 + size)
        top, bottom = rng.sample(range(1, 4 + size), 2)
        steps, truth = _reduce(factor * top, factor * bottom)
        question = f"Simplify {_fraction(factor * top, factor * bottom)}."
        return _boxed("math500", question, steps, truth)
    if kind == 1:
        a, b, right = rng.randint(2, 3 + size), rng.randint(1, 9), rng.randint(1, 8 * size)
        steps, truth = _reduce(right, a)
        moved = f"{a}x={right + b}-{b}={right}"
        return _boxed("math500", f"Solve {a}x + {b} = {right + b} for x.", [moved, *steps], truth)
    x = rng.randint(2, 3 + size)
    a, b, c = (rng.randint(1, 9) for _ in range(3))
    inner = a * x + b
    steps = [f"{a}*{x}={a * x}", f"{a * x}+{b}={inner}"]
    steps += [f"{inner}*{x}={inner * x}", f"{inner * x}+{c}={inner * x + c}"]
    question = f"Evaluate {a}x^2 + {b}x + {c} at x = {x}."
    return _boxed("math500", question, steps, str(inner * x + c))


def _choice(
    dataset: str, question: str, options: list[str], right: int, steps: list[str]
) -> Question:
    letters = LETTERS[: len(options)]
    listed = "\n".join(f"{a}) {b}" for a, b in zip(letters, options, strict=True))
    return Question(
        dataset=dataset,
        question=question,
        text_input=f"{question}\n{listed}\nEnd with ANSWER: and the letter.",
        reasoning="\n".join(steps),
        answer=f"ANSWER: {letters[right]}",
        ground_truth=letters[right],
        metric="exact_match",
    )


def _options(rng: random.Random, value: int, count: int) -> tuple[list[int], int]:
    """`count` different numbers near `value`, including `value`, and its index."""
    near = {value + d for d in (-20, -11, -10, -9, -2, -1, 1, 2, 9, 10, 11, 20, 30, 100)}
    options = rng.sample(sorted(n for n in near if n > 0), count - 1)
    right = rng.randrange(count)
    options.insert(right, value)
    return options, right


def _search(options: list[int], value: int) -> list[str]:
    """The lines that check option by option until the one that is `value`."""
    right = options.index(value)
    lines = [f"{letter}) {option} no" for letter, option in zip(LETTERS, options, strict=False)]
    return [*lines[:right], f"{LETTERS[right]}) {value} yes"]


PHYSICS = (
    ("A cart rolls at {a} m/s for {b} s. How far does it go?", "m"),
    ("A mass of {a} kg is accelerated at {b} m/s^2. What is the force?", "N"),
    ("A current of {a} A flows through {b} ohm. What is the voltage?", "V"),
    ("A wave of {a} Hz has a length of {b} m. How fast is it?", "m/s"),
    ("A pump needs {a} W for {b} s. How much energy is that?", "J"),
)


def gpqa(rng: random.Random, size: int) -> Question:
    """A product with a unit, worked out digit by digit; four options."""
    text, unit = rng.choice(PHYSICS)
    a, b = rng.randint(2, 10 + 30 * size), rng.randint(2, 9)
    parts = [int(d) * 10**i for i, d in enumerate(reversed(str(a))) if d != "0"][::-1]
    steps = [f"{part}*{b}={part * b}" for part in parts]
    total = parts[0] * b
    for part in parts[1:]:
        steps.append(f"{total}+{part * b}={total + part * b}")
        total += part * b
    options, right = _options(rng, total, 4)
    steps += _search(options, total)
    return _choice("gpqa", text.format(a=a, b=b), [f"{o} {unit}" for o in options], right, steps)


def mmlu_pro(rng: random.Random, size: int) -> Question:
    """A sum, the largest or smallest number, or a count; ten options."""
    kind = rng.randrange(3)
    if kind == 0:
        a, b = rng.randint(1, 30 * size), rng.randint(1, 99)
        options, right = _options(rng, a + b, 10)
        steps = [f"{a}+{b}={a + b}", *_search(options, a + b)]
        return _choice("mmlu_pro", f"What is {a} + {b}?", [str(o) for o in options], right, steps)
    if kind == 1:
        name, pick = rng.choice((("largest", max), ("smallest", min)))
        options = rng.sample(range(10, 100), 10)
        steps = []
        for i, option in enumerate(options):
            best = pick(options[: i + 1])
            steps.append(f"{LETTERS[i]}) {option} best {LETTERS[options.index(best)]}) {best}")
        right = options.index(pick(options))
        return _choice("mmlu_pro", f"Which is {name}?", [str(o) for o in options], right, steps)
    digit = rng.randint(1, 9)
    row = [digit if rng.random() < 0.4 else rng.randint(0, 9) for _ in range(2 * size)]
    question = f"How often does {digit} occur in {' '.join(map(str, row))}?"
    steps, seen = [], 0
    while row:
        seen += row.pop(0) == digit
        steps.append(f"{seen}: {' '.join(map(str, row))}".rstrip())
    options = rng.sample(range(10), 10)
    steps += _search(options, seen)
    return _choice("mmlu_pro", question, [str(o) for o in options], options.index(seen), steps)


Step = tuple[str, str, Callable[[list[int]], list[int]]]


def _step(rng: random.Random) -> Step:
    """A sentence, its Python expression, and its effect on a list."""
    k = rng.randint(2, 9)
    kind = rng.randrange(8)
    if kind == 0:
        return f"Keep those above {k}.", f"x > {k}", lambda v: [x for x in v if x > k]
    if kind == 1:
        return f"Keep those below {k}.", f"x < {k}", lambda v: [x for x in v if x < k]
    if kind == 2:
        return f"Drop multiples of {k}.", f"x % {k} != 0", lambda v: [x for x in v if x % k]
    if kind == 3:
        return f"Keep multiples of {k}.", f"x % {k} == 0", lambda v: [x for x in v if x % k == 0]
    if kind == 4:
        return f"Add {k} to each.", f"x + {k}", lambda v: [x + k for x in v]
    if kind == 5:
        return f"Take {k} from each.", f"x - {k}", lambda v: [x - k for x in v]
    if kind == 6:
        return f"Multiply each by {k}.", f"x * {k}", lambda v: [x * k for x in v]
    return "Square each.", "x * x", lambda v: [x * x for x in v]


ENDS: tuple[tuple[str, str, Callable[[list[int]], object]], ...] = (
    ("Print the sum.", "sum(v)", sum),
    ("Print how many are left.", "len(v)", len),
    ("Print the largest, or 0 if none.", "max(v, default=0)", lambda v: max(v, default=0)),
    ("Print the smallest, or 0 if none.", "min(v, default=0)", lambda v: min(v, default=0)),
    ("Print them in order.", "*sorted(v)", lambda v: " ".join(map(str, sorted(v)))),
)


def livecodebench(rng: random.Random, size: int) -> Question:
    """A program that applies some steps to a list of integers, from stdin to stdout."""
    steps = [_step(rng) for _ in range(size)]
    end, end_code, finish = rng.choice(ENDS)
    question = " ".join(["Read integers from one line.", *(text for text, _, _ in steps), end])
    lines = ["v = list(map(int, input().split()))"]
    for _, code, _ in steps:
        keeps = any(sign in code for sign in "<>=")
        lines.append(f"v = [x for x in v if {code}]" if keeps else f"v = [{code} for x in v]")
    lines.append(f"print({end_code})")

    def test() -> dict[str, str]:
        values = [rng.randint(-9, 30) for _ in range(rng.randint(3, 12))]
        line = " ".join(map(str, values))
        for _, _, apply in steps:
            values = apply(values)
        return {"input": line + "\n", "output": f"{finish(values)}\n", "testtype": "stdin"}

    name = "tiny_" + hashlib.sha256(question.encode()).hexdigest()[:12]
    problem = {
        "question_title": name,
        "question_content": question,
        "platform": "atcoder",
        "question_id": name,
        "contest_id": "tiny",
        "contest_date": "2026-01-01T00:00:00",
        "starter_code": "",
        "difficulty": "easy",
        "public_test_cases": json.dumps([test()]),
        "private_test_cases": json.dumps([test() for _ in range(5)]),
        "metadata": "{}",
    }
    return Question(
        dataset="livecodebench",
        question=question,
        text_input=f"{question}\nWrite it in Python.",
        reasoning="\n".join([*(code for _, code, _ in steps), end_code]),
        answer="```python\n" + "\n".join(lines) + "\n```",
        ground_truth=name,
        metric="code_execution",
        problem=problem,
    )


Maker = Callable[[random.Random, int], Question]
TASKS: dict[str, tuple[Maker, int]] = {  # (maker, largest size used in training)
    "aime1983": (aime, 9),
    "gpqa": (gpqa, 6),
    "livecodebench": (livecodebench, 6),
    "math500": (math500, 6),
    "mmlu_pro": (mmlu_pro, 4),
}


def training(seed: int) -> Iterator[Question]:
    """An endless stream of questions that are not held out, of all tasks in turn.

    The first ones are small, so that single steps are learned before chains of them.
    """
    rng = random.Random(seed)
    for count in itertools.count():
        for make, largest in TASKS.values():
            growth = min(1.0, 0.2 + count / GROWN_AFTER)
            question = make(rng, rng.randint(1, max(1, round(growth * largest))))
            if not question.held_out:
                yield question
