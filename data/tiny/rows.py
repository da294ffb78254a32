"""Make the tiny data set: rows with the columns of MLPerf's, and the programs' tests.

    python -m data.tiny.rows --output data/tiny

Every row is held out from training by the hash of its text. Sizes reach past those of training, so
that no task is answered perfectly.
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
    """The data set's questions in MLPerf's order of tasks, all different."""
    rng = random.Random(SEED)
    chosen: dict[str, Question] = {}
    for name, count in ROWS.items():
        make, _ = TASKS[name]
        wanted = len(chosen) + count
        while len(chosen) < wanted:
            question = make(rng, rng.randint(1, LARGEST[name]))
            if question.held_out:
                chosen.setdefault(question.text_input, question)
    return list(chosen.values())


def frame(made: list[Question], prompts: Prompts) -> pd.DataFrame:
    """One row a question, with the columns of MLPerf's data set."""
    tokens = [list(prompts.ids(question.text_input)) for question in made]
    return pd.DataFrame(
        {
            "dataset": [question.dataset for question in made],
            "question": [question.question for question in made],
            "text_input": [question.text_input for question in made],
            "tok_input": tokens,
            "tok_input_len": [len(ids) for ids in tokens],
            "ground_truth": [question.ground_truth for question in made],
            "metric": [question.metric for question in made],
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("data/tiny"))
    parser.add_argument("--model", type=Path, default=Path("data/tiny/model"))
    args = parser.parse_args()
    made = questions()
    write_frame(frame(made, Prompts(args.model)), args.output / "final_output.pkl")
    problems = [json.dumps(question.problem) for question in made if question.problem]
    (args.output / "livecodebench.jsonl").write_text("\n".join(problems) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
