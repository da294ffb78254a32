"""Write the tiny model's scores to scores.json: python -m data.tiny.scores GRADED_FILE"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import entrypoint
from data.samples import read_frame

if TYPE_CHECKING:
    import pandas as pd

SCORES = Path(__file__).parent / "scores.json"


def scores(graded: "pd.DataFrame") -> dict[str, Any]:
    """exact_match of all rows and of each task, in percent, and answer lengths in tokens."""
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
    text = json.dumps(scores(read_frame(parser.parse_args().graded_file)), indent=2)
    SCORES.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    entrypoint.run(main)
