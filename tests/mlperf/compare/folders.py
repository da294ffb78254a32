"""Result folders as runs leave them, written without a run."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from data.results import write_frame
from data.timeline import OF_REQUESTS, OF_SECONDS, Metadata, write_timeline
from mlperf.run import RECORD, RESULTS, TIMELINE
from mlperf.state import STATE


def write_run(
    folder: Path,
    texts: Sequence[str],
    right: Sequence[bool] | None = None,
    figures: dict[str, float] | None = None,
    questions: Sequence[str] | None = None,
    **record: Any,
) -> Path:
    """A finished run whose answers' tokens are their characters. Returns its folder."""
    folder.mkdir(parents=True)
    rows = range(len(texts))
    frame = pd.DataFrame(
        {
            "dataset": "aime",
            "question": questions or [f"question {row}" for row in rows],
            "ground_truth": list(rows),
            "sample_index": list(rows),
            "query_id": list(rows),
            "model_output": pd.Series(texts, dtype=object),
            "tok_model_output": [[ord(letter) for letter in text] for text in texts],
            "tok_model_output_len": [len(text) for text in texts],
            "finish": "stop",
        }
    )
    if right is not None:
        frame["extracted_answer"] = [f"answer {row}" for row in rows]
        frame["prompt_accuracy"] = [100.0 * one for one in right]
    write_frame(frame, folder / (RESULTS if right is None else f"{RESULTS}_evaluated"))
    content = {
        "mode": "offline",
        "test": "performance" if right is None else "accuracy",
        "backend": "echo",
        "figures": figures or {},
        "not_submittable_because": [],
        **record,
    }
    (folder / RECORD).write_text(json.dumps(content))
    write_state(folder, "done")
    return folder


def write_state(folder: Path, state: str, error: str | None = None) -> Path:
    """A state file of a run that has finished three of ten samples. Returns its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "state": state,
        "finished": 3,
        "of": 10,
        "pid": 1,
        "host": "box",
        "started": "2026-11-27T10:00:00+00:00",
        "updated": "2026-11-27T10:00:09+00:00",
        "error": error,
    }
    (folder / STATE).write_text(json.dumps(content))
    return folder


def add_timeline(folder: Path, ttfts: Sequence[float], tokens: Sequence[int]) -> None:
    """A timeline with a request for each TTFT in seconds, and a second for each count of tokens."""
    arrivals = [0.01 * at for at in range(len(ttfts))]
    requests: dict[str, Sequence[Any]] = {
        **{name: [None] * len(ttfts) for name in OF_REQUESTS},
        "request_id": range(len(ttfts)),
        "arrival_s": arrivals,
        "first_token_s": [start + ttft for start, ttft in zip(arrivals, ttfts, strict=True)],
        "finish_s": [start + ttft + 1 for start, ttft in zip(arrivals, ttfts, strict=True)],
        "answer_tokens": [11] * len(ttfts),
    }
    seconds: dict[str, Sequence[Any]] = {
        **{name: [None] * len(tokens) for name in OF_SECONDS},
        "arrival_s": range(len(tokens)),
        "finish_s": range(1, len(tokens) + 1),
        "tokens": tokens,
    }
    metadata = Metadata("server", "performance", "echo", 1.8e9)
    write_timeline(folder / TIMELINE, requests, seconds, metadata)
