"""A result folder of the benchmark's size, with made-up answers."""

from pathlib import Path
from pydoc_data import topics

import numpy as np
import pandas as pd

from benchmark import TASK_ROWS, TOKENS_PER_SAMPLE
from data.frames import write_parquet
from data.timeline import Metadata, write_timeline
from tests.mlperf.test_result_folder import BEGAN, run_in

CHARACTERS = 3.5  # of a token of R1's answers


def full_size(folder: Path) -> None:
    """A result folder with as many answers as the benchmark has, and of their length.

    The texts are pieces of Python's own documentation.
    """
    run_in(folder)
    random = np.random.default_rng(0)
    rows = sum(TASK_ROWS.values())
    tokens = random.lognormal(7.9, 0.85, rows)
    tokens = (tokens * TOKENS_PER_SAMPLE / tokens.mean()).astype(int)
    source, piece = "".join(topics.topics.values()), 240

    def text(characters: int) -> str:
        starts = random.integers(0, len(source) - piece, characters // piece + 1)
        return "".join(source[start : start + piece] for start in starts)[:characters]

    right = random.random(rows) < 0.8
    frame = {
        "dataset": [task for task, count in TASK_ROWS.items() for _ in range(count)],
        "question": [text(600) for _ in range(rows)],
        "ground_truth": "A",
        "sample_index": range(rows),
        "query_id": range(rows),
        "model_output": [text(int(count * CHARACTERS)) for count in tokens],
        "tok_model_output_len": tokens,
        "finish": "stop",
        "extracted_answer": ["A" if one else "B" for one in right],
        "prompt_accuracy": np.where(right, 100.0, 0.0),
        "grading_status": "ok",
        "grading_rule": "final answer",
        "grading_detail": None,
    }
    write_parquet(pd.DataFrame(frame), folder / "results_evaluated.parquet")
    arrival = np.sort(random.random(rows) * 600)
    first = arrival + random.lognormal(-1, 0.5, rows)
    end = first + tokens * random.lognormal(-3.4, 0.12, rows)
    seconds = np.arange(int(end.max()) + 1.0)
    requests = {
        "arrival_s": arrival,
        "first_token_s": first,
        "finish_s": end,
        "request_id": range(rows),
        "sample_index": range(rows),
        "answer_tokens": tokens,
    }
    received = np.histogram(end, [*seconds, seconds[-1] + 1], weights=tokens)[0]
    every = {"arrival_s": seconds, "finish_s": seconds + 1, "tokens": received.astype(int)}
    about = Metadata("server", "accuracy", "echo", BEGAN)
    columns = [{name: list(column) for name, column in one.items()} for one in (requests, every)]
    write_timeline(folder / "timeline.parquet", columns[0], columns[1], about)
