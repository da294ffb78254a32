"""Whether rows are the benchmark's: as many of each task, and prompts of the same mean length."""

from collections.abc import Mapping

from benchmark import PROMPT_TOKENS, TASK_ROWS

PROMPT_TOLERANCE = 1.0  # tokens that the mean prompt may differ from the benchmark's


def task_differences(rows: Mapping[str, int]) -> list[str]:
    """What is wrong with the number of rows of each task; empty if nothing is."""
    return [
        f"{rows.get(task, 0)} rows of {task}, not the benchmark's {expected}"
        for task, expected in TASK_ROWS.items()
        if rows.get(task, 0) != expected
    ]


def length_difference(mean: float) -> str | None:
    """What is wrong with the mean length of the prompts in tokens; None if nothing is."""
    if abs(mean - PROMPT_TOKENS) <= PROMPT_TOLERANCE:
        return None
    return f"prompts have {mean:.1f} tokens on average, not the benchmark's {PROMPT_TOKENS}"
