"""Keep the scores of the tiny model beside its weights: python -m data.tiny.scores GRADED_FILE"""

import argparse
import json
from pathlib import Path
from typing import Any

import pandas as pd

import entrypoint
from data.samples import read_frame

KEPT = Path(__file__).parent / "scores.json"


def scores(graded: pd.DataFrame) -> dict[str, Any]:
    """exact_match of all rows and of each task, in %, and how long the answers are, in tokens."""
    lengths = graded["tok_model_output_len"]
    tasks = graded.groupby("dataset")["prompt_accuracy"].mean()
    return {
        "exact_match": round(float(graded["prompt_accuracy"].mean()), 4),
        "tasks": {str(task): round(float(score), 4) for task, score in tasks.items()},
        "rows": len(graded),
        "tokens_per_sample": round(float(lengths.mean()), 4),
        "shortest_answer": int(lengths.min()),
        "longest_answer": int(lengths.max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("graded_file", type=Path)
    found = scores(read_frame(parser.parse_args().graded_file))
    KEPT.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    entrypoint.run(main)
