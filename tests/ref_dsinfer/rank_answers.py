"""What each rank of test_parallel runs under torchrun: the answers of an engine, and logits of a
step, written as JSON.

rank_answers.py CASES

CASES is JSON, a list of arguments of `write_answers`; a process may be in many groups of ranks, one
after another, and starting it takes longer than its answers.
"""

import json
import random
import sys
from dataclasses import replace
from pathlib import Path

import torch

import entrypoint
from ref_dsinfer.engine import Engine
from ref_dsinfer.options import EngineOptions
from ref_dsinfer.parallel import Ranks
from ref_dsinfer.sequence import Sequence
from ref_dsinfer.symmetric import BUFFER_BYTES
from tests.ref_dsinfer import symmetric_on_cpus


def answers(
    model: Path,
    attention: str,
    dtype: str,
    temperature: float,
    speculative: bool = False,
    fixed: bool = False,
    symmetric: bool = False,
) -> tuple[Engine, list[list[int]]]:
    """Twelve answers of unequal length; some prompts come while others run, one is aborted.

    `fixed`: steps have the shapes of CUDA graphs. `symmetric`: sums are made in symmetric memory.
    """
    options = EngineOptions("cpu", dtype, attention, speculative=speculative)
    engine = Engine(model, replace(options, max_running=5, threads=1))
    if fixed:
        engine.runner.fix_shapes(engine.scheduler.step_tokens, 5, engine.max_model_len)
    if symmetric:
        symmetric_on_cpus.provide(engine.ranks, multicast=True)
    chance = random.Random(3)
    token_ids: list[list[int]] = [[] for _ in range(12)]
    for number in range(12):
        length = chance.choice((1, 9, 40, 70))
        ids = tuple(chance.randrange(engine.config.vocab_size) for _ in range(length))
        engine.add(number, ids, chance.randint(3, 30), temperature=temperature)
        for output in engine.step():
            token_ids[output.id] += output.token_ids
    engine.abort(7)
    while engine.busy:
        for output in engine.step():
            token_ids[output.id] += output.token_ids
    return engine, token_ids


def logits(engine: Engine) -> list[list[float]]:
    """Of five prompts of unequal length after their first step."""
    scheduler = engine.scheduler
    for number in range(5):
        scheduler.add(Sequence(number, tuple(range(1, 2 + 9 * number)), 9))
    work = scheduler.schedule()
    scores = engine.runner.run(work)
    values = engine.ranks.gather_columns(scores.part_MV[scores.rows]).tolist()
    for one in work:
        scheduler.remove(one.sequence)
    return [row for _, row in sorted(zip((one.sequence.id for one in work), values, strict=True))]


def write_answers(
    model: str,
    output: str,
    attention: str,
    dtype: str = "float32",
    temperature: float = 0.0,
    speculative: bool = False,
    fixed: bool = False,
    symmetric: bool = False,
) -> None:
    """Write this rank's answers to OUTPUT.rank."""
    engine, token_ids = answers(
        Path(model), attention, dtype, temperature, speculative, fixed, symmetric
    )
    assert bool(engine.verified) == speculative
    words = engine.ranks.broadcast(["x"] * 1000 if engine.ranks.rank == 0 else None)
    nothing = engine.ranks.broadcast(None)
    assert (len(words), nothing) == (1000, None)
    written = json.dumps({"answers": token_ids, "logits": logits(engine)})
    Path(f"{output}.{engine.ranks.rank}").write_text(written)
    assert all(pool.free == pool.blocks for pool in engine.scheduler.pools)
    if symmetric:
        check_symmetric(engine.ranks)
    engine.close()


def check_symmetric(ranks: Ranks) -> None:
    """All sums but large ones have been made in symmetric memory; the same without a switch."""
    calls = symmetric_on_cpus.calls
    assert calls["multimem"] > 100
    assert symmetric_on_cpus.provide(ranks, multicast=False).is_right(ranks.rank)
    assert calls["one_shot"] == 2 * 3
    large = torch.ones(BUFFER_BYTES // 4 + 1)
    assert ranks.all_reduce(large, torch.float32).eq(2).all()
    assert calls["one_shot"] == 2 * 3


def main() -> None:
    """Every case in turn."""
    for case in json.loads(sys.argv[1]):
        write_answers(*case)


if __name__ == "__main__":
    entrypoint.run(main)
