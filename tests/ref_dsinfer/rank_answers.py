"""What each rank of test_parallel runs under torchrun: the answers of an engine, written as JSON.

rank_answers.py MODEL OUTPUT DTYPE TEMPERATURE [speculative]
"""

import json
import random
import sys
from pathlib import Path

from ref_dsinfer import errors
from ref_dsinfer.engine import Engine


def answers(
    model: Path, dtype: str, temperature: float, speculative: bool = False
) -> tuple[Engine, list[list[int]]]:
    """Twelve answers of unequal length; some prompts come while others run, one is aborted."""
    engine = Engine(
        model, device="cpu", dtype=dtype, max_running=5, threads=1, speculative=speculative
    )
    chance = random.Random(3)
    found: list[list[int]] = [[] for _ in range(12)]
    for number in range(12):
        length = chance.choice((1, 9, 40, 70))
        ids = tuple(chance.randrange(engine.config.vocab_size) for _ in range(length))
        engine.add(number, ids, chance.randint(3, 30), temperature=temperature)
        for output in engine.step():
            found[output.id] += output.token_ids
    engine.abort(7)
    while engine.busy:
        for output in engine.step():
            found[output.id] += output.token_ids
    return engine, found


def main() -> None:
    """Write this rank's answers to OUTPUT.rank."""
    model, output, dtype, temperature, *speculative = sys.argv[1:]
    engine, found = answers(Path(model), dtype, float(temperature), bool(speculative))
    assert bool(engine.checked) == bool(speculative)
    words = engine.ranks.share(["x"] * 1000 if engine.ranks.rank == 0 else None)
    nothing = engine.ranks.share(None)
    assert (len(words), nothing) == (1000, None)
    Path(f"{output}.{engine.ranks.rank}").write_text(json.dumps(found))
    engine.close()


if __name__ == "__main__":
    errors.run(main)
