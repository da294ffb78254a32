"""The five tasks of the benchmark, and the grade of an answer."""

import re
from dataclasses import dataclass

TASKS = ("gpqa", "mmlu_pro", "math500", "aime", "livecodebench")  # in the order names are matched


@dataclass(frozen=True)
class Answer:
    """What a model said to one sample, and what is right."""

    sample_index: int  # row in the frame that is graded
    task: str  # one of TASKS
    text: str  # "" where nothing was said
    ground_truth: object  # as the data set holds it; None where it is missing


@dataclass(frozen=True)
class Verdict:
    """Whether an answer is right, and the rule that has decided it."""

    right: bool
    rule: str


@dataclass(frozen=True)
class Grade:
    """What became of one answer. An `error` says why it could not be judged; it is no verdict."""

    sample_index: int  # row in the frame that is graded
    extracted: str | int | None  # None: no answer was found in the text
    correct: bool
    error: str | None = None


def task_of(dataset: object) -> str:
    """The task whose name is contained in a data set's name, e.g. aime for AIME1983.

    Names are matched in lower case and in the order of `TASKS`, as the public grader does; then
    once more without punctuation, so that MMLU-Pro and math-500 are understood too.

    Errors: ValueError naming the known tasks.
    """
    if isinstance(dataset, str):
        lower = dataset.lower()
        bare = re.sub(r"[\W_]", "", lower)
        for task in TASKS:
            if task in lower:
                return task
        for task in TASKS:
            if task.replace("_", "") in bare:
                return task
    raise ValueError(f"unknown data set {dataset!r} (known tasks: {', '.join(TASKS)})")
