"""From a source's rows to the data set's: question, prompt, ground truth, in the official formats.

The formats are those of the official file's rows that MLCommons has published, one of each task
(mlcommons/endpoints, tests/assets/datasets/ds_samples.jsonl). A format that none of them shows is
marked as such.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

from data.prepare.sources import ANSWERS, Rows
from errors import ColumnsError, InputFileError

LETTERS = "ABCDEFGHIJ"
# The examples in front of the question, by the SHA-256 hash of each, in order.
MATH_EXAMPLES = (
    "d92c5ab00bb06cfc216efc2a70abf3312c92d20f19293653443c74b810718ae2",
    "01798519c110b7cc054f4cbe15ed14bbe7e4e5f5239f43c0e90ad1fed296fbf3",
    "0c8cba0da132700efac9b16ca0d9cb3b3f9a50bbeb7a8e1b155c9d7400c6f726",
    "89e614dcfa49e788ac5f77f97971681fcf234eea7eee3d6cce5a7ab8c0a5784c",
    "49e35ceea1820a1cd79ef07a9ec04aa63afec14ca586981ae5d9b1bbade7abb7",
)
GPQA_EXAMPLES = (
    "5fe02aa4cce88a9e26d31d6920fe6d947a6b8e390ecbdd12edc5272b83146a2d",
    "1d5c685a8844a240041559e42e7365a22146d773d33c4786de3cf7ff2dd1f2a0",
)
MMLU_PRO_EXAMPLES = (
    "99b54b5280917916c8b6c8964aaaba66874259a3b4b6a92e5f31a0c5f685e711",
    "fbf5c4fc8e46a590bea73c8d771c1e5bebfb5dac638cd78bf3d21f5824097ad8",
    "d27151e2bca5433859c464a0a8e617961c5df1e762b248fc76d6c554efb62405",
    "abc3c2b28729041290db14de5fe3849960f546df880462074390b5bc2ce9bc84",
    "bc77d7cb44bcf4392600ba1091580a3a2960f3acd85c3a1bb5de985050eacc7c",
)
EXACT, EXECUTED = "exact_match", "code_execute_verify"  # values of the column metric
_AIME = (
    "Solve the following math problem step by step. The final line of your response should contain"
    " the final answer as an integer enclosed in \\boxed{{}}.\n\nProblem: {}\n\nSolution:"
)
_MATH = (
    "Here are some example problems with their final answers:\n\n{}\n\nSolve the following math"
    " problem step by step. Put your final answer inside \\boxed{{answer}}.\n\nProblem: {}\n\n"
    "Solution:"
)
_CHOICE = (
    "Here are some example questions with their correct answers:\n\n{}\n\nAnswer the following"
    " multiple choice question. The last line of your response should be in the following format:"
    " 'Answer: {}' (e.g. 'Answer: A').\n\n{}"
)
_CODE = "{}\n\n### Question:\n{}\n\n### Format: {}\n```python\n{}\n```\n### Answer:"
_WITH_STARTER = (
    "You will use the following starter code to write the solution to the problem and enclose your"
    " code within delimiters."
)
# LiveCodeBench's own sentence; no official row without starter code has been published
_WITHOUT_STARTER = (
    "Read the inputs from stdin solve the problem and write the answer to stdout (do not directly"
    " test on the sample inputs). Enclose your code within delimiters as follows. Ensure that when"
    " the python program runs, it reads the inputs, runs the algorithm and writes output to STDOUT."
)
_NO_STARTER = "# YOUR CODE HERE"


@dataclass(frozen=True)
class Row:
    """A row of the data set, before its prompt is tokenized."""

    dataset: str
    question: str
    text_input: str  # the prompt, before the chat template
    ground_truth: str
    metric: str = EXACT


def aime(rows: Rows) -> list[Row]:
    """AIME's problems whose answer is an integer: of 933, one has two answers."""
    return [
        Row("aime1983", row["Question"], _AIME.format(row["Question"]), str(int(answer)))
        for row in rows
        if (answer := str(row["Answer"]).strip()).isdecimal()
    ]


def math500(rows: Rows, examples: Rows) -> list[Row]:
    """MATH-500's problems. `examples`: rows of MATH. Raises: InputFileError."""
    shown = _recognised(
        (
            f"Problem: {row['problem']}\n\nSolution: {row['solution']}"
            for row in _with_stripped(examples)
        ),
        MATH_EXAMPLES,
        "MATH",
    )
    return [
        Row("math500", row["problem"], _MATH.format(shown, row["problem"]), str(row["answer"]))
        for row in rows
    ]


def gpqa(rows: Rows, examples: Rows) -> list[list[Row]]:
    """GPQA's questions, each with its choices in all 24 orders.

    The first order is that of the hashes of question and choice: which one the official file has is
    not published. `examples`: rows of gpqa_extended. Raises: InputFileError.
    """
    shown = _recognised(_gpqa_examples(examples), GPQA_EXAMPLES, "GPQA")
    return [
        [
            Row("gpqa", row["Question"], _CHOICE.format(shown, "A/B/C/D", text), letter)
            for text, letter in _gpqa_orders(row)
        ]
        for row in rows
    ]


def mmlu_pro(rows: Rows, examples: Rows) -> list[Row]:
    """MMLU-Pro's questions. `examples`: rows of its validation split.

    Raises: InputFileError; ColumnsError if the choices of a row are not a list of 2 to 10 texts.
    """
    shown = _recognised(
        (
            f"Question: {row['question']}\n{_choices(_options(row))}\nAnswer: {row['answer']}"
            for row in _with_stripped(examples)
        ),
        MMLU_PRO_EXAMPLES,
        "MMLU-Pro",
    )
    return [
        Row(
            "mmlu_pro",
            row["question"],
            _CHOICE.format(shown, "A/B/C/...", f"{row['question']}\n\n{_choices(_options(row))}"),
            str(row["answer"]),
        )
        for row in rows
    ]


def livecodebench(rows: Rows) -> list[Row]:
    """LiveCodeBench's problems; the ground truth is the problem's id."""
    return [
        Row(
            "livecodebench",
            row["question_title"],
            _CODE.format(
                row["question_title"],
                row["question_content"],
                _WITH_STARTER if row["starter_code"] else _WITHOUT_STARTER,
                row["starter_code"] or _NO_STARTER,
            ),
            str(row["question_id"]),
            EXECUTED,
        )
        for row in rows
    ]


def digest(text: str) -> str:
    """The SHA-256 hash of a text, in hexadecimal."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def _recognised(texts: Iterable[str], digests: Sequence[str], name: str) -> str:
    """The examples with these hashes, as a prompt shows them. Raises: InputFileError."""
    examples: dict[str, str] = {}
    for text in texts:
        if (key := digest(text)) in digests:
            examples[key] = text
            if len(examples) == len(digests):
                break
    missing = [number for number, key in enumerate(digests, 1) if key not in examples]
    if missing:
        raise InputFileError(
            f"{name}: example {missing[0]} of {len(digests)} in the official prompts is not in the"
            " source: is it another revision?"
        )
    return "\n\n".join(examples[key] for key in digests)


def _gpqa_examples(rows: Rows) -> Iterator[str]:
    for row in _with_stripped(rows):
        for text, letter in _gpqa_orders(row):
            yield f"Question: {text}\nExplanation: {row['Explanation']}\nAnswer: {letter}"


def _with_stripped(rows: Rows) -> Iterator[dict[str, Any]]:
    """Each row, also with its texts stripped: the prompts don't show which of them they have."""
    for row in rows:
        yield row
        yield {name: cell.strip() if isinstance(cell, str) else cell for name, cell in row.items()}


def _gpqa_orders(row: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Question with choices, and the right letter, for each order of the choices."""
    right = row[ANSWERS[0]]
    answers = sorted(
        (row[name] for name in ANSWERS),
        key=lambda answer: digest(f"{row['Question']}\n{answer}"),
    )
    for order in permutations(range(len(answers))):
        shown = [answers[one] for one in order]
        yield f"{row['Question']}\n{_choices(shown)}", LETTERS[shown.index(right)]


def _choices(answers: Iterable[str]) -> str:
    return "\n".join(f"{letter}) {text}" for letter, text in zip(LETTERS, answers, strict=False))


def _options(row: dict[str, Any]) -> list[str]:
    """The choices of MMLU-Pro: a list, or its JSON in CSV. Raises: ColumnsError."""
    options = row["options"]
    if isinstance(options, str):
        try:
            options = json.loads(options)
        except ValueError:
            options = None
    if not (
        isinstance(options, list)
        and 2 <= len(options) <= len(LETTERS)
        and all(isinstance(option, str) for option in options)
    ):
        raise ColumnsError(
            f"options of the question {row['question'][:60]!a} are not a list of 2 to"
            f" {len(LETTERS)} texts: {str(row['options'])[:60]!a}"
        )
    return options
