"""Make the tiny data set, with the columns of MLPerf's, and the programs' tests.

    python -m data.tiny.rows --output data/tiny

All rows are held out from training by the hash of their text. Some are larger than any in the
training, so that no task is answered perfectly.
"""

import argparse
import json
import random
from pathlib import Path

import pandas as pd

from data.prompts import Prompts
from data.results import write_frame
from data.tiny.questions import TASKS, Question

SEED = 20261123
ROWS = {"aime1983": 52, "gpqa": 40, "livecodebench": 36, "math500": 52, "mmlu_pro": 60}
LARGEST = {"aime1983": 10, "gpqa": 8, "livecodebench": 8, "math500": 8, "mmlu_pro": 4}


def questions() -> list[Question]:
    """The data set's questions, all different, in MLPerf's order of tasks."""
    rng = random.Random(SEED)
    chosen: dict[str, Question] = {}
    for name, count in ROWS.items():
        make, _ = TASKS[name]
        total = len(chosen) + count
        while len(chosen) < total:
            question = make(rng, rng.randint(1, LARGEST[name]))
            if question.held_out:
                chosen.setdefault(question.text_input, question)
    return list(chosen.values())


def frame(rows: list[Question], prompts: Prompts) -> pd.DataFrame:
    """One row per question, with the columns of MLPerf's data set."""
    tokens = [list(prompts.ids(row.text_input)) for row in rows]
    return pd.DataFrame(
        {
            "dataset": [row.dataset for row in rows],
            "question": [row.question for row in rows],
            "text_input": [row.text_input for row in rows],
            "tok_input": tokens,
            "tok_input_len": [len(ids) for ids in tokens],
            "ground_truth": [row.ground_truth for row in rows],
            "metric": [row.metric for row in rows],
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("data/tiny"))
    parser.add_argument("--model", type=Path, default=Path("data/tiny/model"))
    args = parser.parse_args()
    rows = questions()
    write_frame(frame(rows, Prompts(args.model)), args.output / "final_output.pkl")
    problems = [json.dumps(row.problem) for row in rows if row.problem]
    (args.output / "livecodebench.jsonl").write_text("\n".join(problems) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
