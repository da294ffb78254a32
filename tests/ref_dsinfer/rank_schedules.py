"""Run by each rank of test_parallel under torchrun: random schedules against single requests.

rank_schedules.py MODEL ALONE FIRST_SEED LAST_SEED

ALONE is JSON, pairs of a prompt and its answer. Rank 0 prints how often a sequence started over.
"""

import json
import os
import sys
from pathlib import Path

import entrypoint
from tests.ref_dsinfer.test_schedules import scheduled


def main() -> None:
    """Run the schedules; an assertion that fails ends all ranks."""
    model, alone, first, last = sys.argv[1:]
    answers = {tuple(prompt): answer for prompt, answer in json.loads(Path(alone).read_text())}
    world = int(os.environ["WORLD_SIZE"])
    seeds = range(int(first), int(last))
    times = [scheduled(Path(model), answers, seed, shares=world) for seed in seeds]
    if os.environ["RANK"] == "0":
        print(sum(count > 0 for count in times))


if __name__ == "__main__":
    entrypoint.run(main)
