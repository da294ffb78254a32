"""The public data sets as small files: each in its true schema, with its true number of rows."""

import csv
import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.prepare import formats
from data.prepare.sources import SOURCES

Rows = list[dict[str, Any]]
TWO_ANSWERS = 500  # of AIME's rows, the one whose answer is no integer
FORMATS = (".csv", ".parquet", ".jsonl")


def rows_of(name: str) -> Rows:
    """The rows of a source, with all of its columns that matter to a reader."""
    make = {
        "aime": _aime,
        "gpqa": _gpqa,
        "gpqa_examples": _gpqa_example,
        "livecodebench": _problem,
        "math500": _math,
        "math_train_examples": _math,
        "math_test_examples": _math,
        "mmlu_pro": _mmlu_pro,
        "mmlu_pro_examples": _mmlu_pro,
    }[name]
    return [make(name, number) for number in range(SOURCES[name].rows)]


def write(rows: Rows, path: Path) -> Path:
    """Write rows in the format that the file's name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    else:
        with path.open("w", encoding="utf-8-sig", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(
                {
                    name: json.dumps(cell) if isinstance(cell, list) else cell
                    for name, cell in row.items()
                }
                for row in rows
            )
    return path


def write_all(folder: Path, ending: str | None = None) -> Path:
    """Write all sources as NAME and `ending`, or as they lie in their repositories."""
    for name, source in SOURCES.items():
        path = folder / name / source.path if ending is None else folder / f"{name}{ending}"
        write(rows_of(name), path)
    return folder


def expect_their_examples(patch: pytest.MonkeyPatch) -> None:
    """Look for the examples that these sources have instead of the official ones."""
    for name, digests in example_digests().items():
        patch.setattr(formats, name, digests)


def example_digests() -> dict[str, tuple[str, ...]]:
    """The hashes of the examples that these sources have, by their names in data.prepare.formats.

    MATH's are of both files, GPQA's choices are in no special order.
    """
    math = [
        *(rows_of("math_train_examples")[number] for number in (40, 2, 7)),
        *(rows_of("math_test_examples")[number] for number in (1, 0)),
    ]
    gpqa = [rows_of("gpqa_examples")[number] for number in (30, 4)]
    mmlu_pro = rows_of("mmlu_pro_examples")[:5]
    return {
        "MATH_EXAMPLES": _digests(
            f"Problem: {row['problem']}\n\nSolution: {row['solution']}" for row in math
        ),
        "GPQA_EXAMPLES": _digests(
            f"Question: {row['Question']}\nA) {row['Incorrect Answer 2']}\n"
            f"B) {row['Correct Answer']}\nC) {row['Incorrect Answer 1']}\n"
            f"D) {row['Incorrect Answer 3']}\nExplanation: {row['Explanation']}\nAnswer: B"
            for row in gpqa
        ),
        "MMLU_PRO_EXAMPLES": _digests(
            f"Question: {row['question']}\nA) one\nB) two {number}\nC) N/A\nAnswer: B"
            for number, row in enumerate(mmlu_pro)
        ),
    }


def _digests(texts: Any) -> tuple[str, ...]:
    return tuple(hashlib.sha256(text.encode()).hexdigest() for text in texts)


def _aime(name: str, number: int) -> dict[str, Any]:
    year, problem = 1983 + number // 23, number % 15 + 1
    answer = "080 or 081 (both were accepted)" if number == TWO_ANSWERS else str(number % 1000)
    return {
        "ID": f"{year}-I-{problem}",
        "Year": year,
        "Problem Number": problem,
        "Question": f'AIME {number}: what is ${number}$ , "twice"?\nSay so.',
        "Answer": answer,
        "Part": "I" if number % 2 else "II",
    }


def _gpqa(name: str, number: int) -> dict[str, Any]:
    return {
        "Pre-Revision Question": "old",
        "Question": f"GPQA {number}: μ, correct? ",
        "Correct Answer": f"right {number} \n",
        "Incorrect Answer 1": "wrong 1",
        "Incorrect Answer 2": f"wrong 2, {number}",
        "Incorrect Answer 3": "3",
        "Explanation": f"because {number}",
        "Subdomain": "Physics (general)",
        "Record ID": f"rec{number}",
    }


def _gpqa_example(name: str, number: int) -> dict[str, Any]:
    row = _gpqa(name, number) | {"Question": f"Example {number}?", "Correct Answer": "yes"}
    return row | {"Incorrect Answer 2": "no"}


def _problem(name: str, number: int) -> dict[str, Any]:
    starter = f"class Solution:\n    def f{number}(self) -> int:\n        " if number % 2 else ""
    return {
        "question_title": f"title-{number}",
        "question_content": f"Do {number}.\n\nExample:\n```\n1\n```\n",
        "platform": "leetcode" if starter else "atcoder",
        "question_id": str(3000 + number) if starter else f"abc{number}_a",
        "contest_id": "contest",
        "contest_date": "2023-08-21T00:00:00",
        "starter_code": starter,
        "difficulty": "easy",
        "public_test_cases": '[{"input": "1", "output": "1", "testtype": "stdin"}]',
        "private_test_cases": "[]",
        "metadata": json.dumps({"func_name": f"f{number}"} if starter else {}),
    }


def _math(name: str, number: int) -> dict[str, Any]:
    return {
        "problem": f"{name} {number}:  $x^{{{number}}}$?",
        "solution": f"It is $\\boxed{{{number}}}$.",
        "answer": str(number),
        "subject": "Algebra",
        "level": 3,
        "unique_id": f"test/algebra/{number}.json",
    }


def _mmlu_pro(name: str, number: int) -> dict[str, Any]:
    category = f"category {number // 1000}"
    return {
        "question_id": number,
        "question": f"{name} {number}: two?",
        "options": ["one", f"two {number}", "N/A"],
        "answer": "B",
        "answer_index": 1,
        "category": category,
        "src": "original",
    }
