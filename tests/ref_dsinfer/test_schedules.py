"""An answer does not depend on other requests or on preemptions."""

import random
from pathlib import Path
from typing import Any

import pytest

from errors import UsageError
from ref_dsinfer.config import ModelConfig
from ref_dsinfer.engine import Engine
from ref_dsinfer.options import EngineOptions
from ref_dsinfer.rounding import ceil_div
from tests.effort import cases

PROMPTS = 12
LONGEST_PROMPT, LONGEST_ANSWER = 70, 40
SCHEDULES = {"plain": cases(32, 240), "speculative": cases(12, 80)}
Prompt = tuple[int, ...]


def made(model: Path, **arguments: Any) -> Engine:
    length = LONGEST_PROMPT + LONGEST_ANSWER
    options = EngineOptions("cpu", "float32", max_model_len=length, threads=1, **arguments)
    return Engine(model, options)


@pytest.fixture(scope="module", params=SCHEDULES)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(kind: str, random_model: Path, drafting_model: Path) -> Path:
    return random_model if kind == "plain" else drafting_model


@pytest.fixture(scope="module")
def alone(model: Path) -> dict[Prompt, list[int]]:
    return answers_alone(model)


def answers_alone(model: Path) -> dict[Prompt, list[int]]:
    """Answers of the longest kind, each alone in an engine that reads its prompt at once, never
    drafts, and has no columns."""
    chance = random.Random(0)
    engine = made(model, max_running=1)
    engine.in_columns = False
    answers: dict[Prompt, list[int]] = {}
    while len(answers) < PROMPTS:
        number, length = len(answers), chance.randint(1, LONGEST_PROMPT)
        ids = tuple(chance.randrange(engine.config.vocab_size) for _ in range(length))
        engine.add(number, ids, LONGEST_ANSWER)
        answers[ids] = []
        while engine.busy:
            answers[ids] += engine.step()[0].token_ids
    return answers


def scheduled(model: Path, alone: dict[Prompt, list[int]], seed: int, shares: int = 1) -> int:
    """Random arrivals and lengths, some aborted, in an engine of random sizes; times that a
    sequence had to start over. With `shares`, on so many ranks of data-parallel attention."""
    chance = random.Random(seed)
    block = chance.choice([1, 3, 8, 16, 64])
    least = ceil_div(LONGEST_PROMPT + LONGEST_ANSWER, block) * block
    engine = made(
        model,
        attention="tp" if shares == 1 else "dp",
        max_running=chance.randint(1, 8) * chance.randint(1, shares),
        block_size=block,
        cache_tokens=(least + chance.choice([0, 0, 40, 200, 800])) * shares,
        step_tokens=chance.choice([1, 7, 40, 500]),
        speculative=ModelConfig.read(model).mtp,
    )
    wanted: dict[int, tuple[Prompt, int]] = {}
    answers: dict[int, list[int]] = {}
    arriving = chance.randint(2, 10 * shares)
    aborted: set[int] = set()
    while arriving or engine.busy:
        while arriving and (not engine.busy or chance.random() < 0.3):
            number, ids = len(wanted), chance.choice(list(alone))
            wanted[number] = ids, chance.randint(1, LONGEST_ANSWER)
            answers[number] = []
            engine.add(number, *wanted[number])
            arriving -= 1
        if chance.random() < 0.02:
            aborted.add(chance.choice(list(wanted)))
            engine.abort(max(aborted))
        for output in engine.step() if engine.busy else []:
            answers[output.id] += output.token_ids
    for number, (ids, length) in wanted.items():
        expected = alone[ids][:length]
        if number in aborted:
            expected = expected[: len(answers[number])]
        assert answers[number] == expected, f"schedule {seed}, request {number}"
    assert len(engine.scheduler.pools) == shares
    assert all(pool.free == pool.blocks for pool in engine.scheduler.pools)
    engine.close()
    return engine.scheduler.preempted


@pytest.mark.slow
def test_an_answer_does_not_depend_on_the_schedule(
    kind: str, model: Path, alone: dict[Prompt, list[int]]
) -> None:
    times = [scheduled(model, alone, seed) for seed in range(SCHEDULES[kind])]
    assert sum(count > 0 for count in times) > SCHEDULES[kind] // 8  # else preemption is not tried


def test_some_schedules_at_once(model: Path, alone: dict[Prompt, list[int]]) -> None:
    for seed in (1000, 1001):
        scheduled(model, alone, seed)


def test_a_cache_too_small_for_one_request_is_refused(random_model: Path) -> None:
    with pytest.raises(UsageError, match="cache holds 96 tokens and one request may need 110"):
        made(random_model, cache_tokens=100, block_size=16)
