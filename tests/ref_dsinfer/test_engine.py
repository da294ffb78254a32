import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from errors import (
    CheckpointError,
    EngineError,
    LaunchError,
    LengthError,
    ModelError,
    ParallelError,
    UsageError,
)
from ref_dsinfer.decoding import Decoding
from ref_dsinfer.engine import Engine
from ref_dsinfer.options import EngineOptions
from ref_dsinfer.sampler import Scores
from ref_dsinfer.scheduler import ScheduledTokens
from tests.ref_dsinfer.conftest import written

VOCABULARY = 96


@pytest.fixture(scope="module")
def engine(random_model: Path) -> Engine:
    options = EngineOptions("cpu", "float32", max_running=3, max_model_len=300, threads=1)
    return Engine(random_model, options)


def prompt(number: int, length: int) -> tuple[int, ...]:
    chance = random.Random(number)
    return tuple(chance.randrange(VOCABULARY) for _ in range(length))


def finish(engine: Engine, wanted: Iterable[int]) -> dict[int, tuple[list[int], str | None]]:
    """Step until no request is left. Returns answers and finish reasons."""
    answers: dict[int, list[int]] = {number: [] for number in wanted}
    ends: dict[int, str | None] = dict.fromkeys(answers)
    while engine.busy:
        for output in engine.step():
            assert ends[output.id] is None
            answers[output.id] += output.token_ids
            ends[output.id] = output.finish
    return {number: (answers[number], ends[number]) for number in answers}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_do_not_depend_on_company(engine: Engine, temperature: float) -> None:
    """Requests alone, all at once, and arriving one by one while others run and are aborted."""
    lengths = {0: 5, 1: 60, 2: 1, 3: 33, 4: 100, 5: 12, 6: 7}
    limits = {0: 40, 1: 3, 2: 25, 3: 17, 4: 30, 5: 1, 6: 12}

    def add(number: int) -> None:
        ids = prompt(number, lengths[number])
        engine.add(number, ids, limits[number], temperature=temperature)

    alone: dict[int, tuple[list[int], str | None]] = {}
    for number in lengths:
        add(number)
        alone |= finish(engine, [number])
    assert [len(answer) for answer, _ in alone.values()] == list(limits.values())
    assert len({token for answer, _ in alone.values() for token in answer}) > 20

    for number in lengths:
        add(number)
    assert finish(engine, lengths) == alone

    answers: dict[int, list[int]] = {number: [] for number in lengths}
    steps = 0
    arriving = list(lengths)
    while arriving or engine.busy:
        if arriving and steps % 3 == 0:
            add(arriving.pop(0))
        if steps % 4 == 1:
            engine.add(1000 + steps, prompt(steps, 20), 50)
        if steps % 4 == 3:
            engine.abort(1000 + steps - 2)
        if engine.busy:
            for output in engine.step():
                if output.id < 1000:
                    answers[output.id] += output.token_ids
        steps += 1
        assert steps < 500
    assert answers == {number: answer for number, (answer, _) in alone.items()}


def test_a_stop_id_ends_an_answer_and_stays_out_of_it(engine: Engine) -> None:
    engine.add(1, prompt(1, 9), 20)
    answer, end = finish(engine, [1])[1]
    assert (len(answer), end) == (20, "length")
    stop = answer[7]
    first = answer.index(stop)
    engine.add(1, prompt(1, 9), 20, frozenset([stop, VOCABULARY + 5]))
    assert finish(engine, [1])[1] == (answer[:first], "stop")
    engine.add(1, prompt(1, 9), 20, frozenset([answer[0]]))
    assert finish(engine, [1])[1] == ([], "stop")


def test_the_model_length_ends_an_answer(random_model: Path) -> None:
    engine = Engine(random_model, EngineOptions("cpu", "float32", max_model_len=12, threads=1))
    for number, length in enumerate((11, 7)):
        engine.add(number, prompt(0, length), 50)
    ends = finish(engine, [0, 1])
    assert [(len(answer), end) for answer, end in ends.values()] == [(1, "length"), (5, "length")]


def test_an_abort_frees_its_slot_and_ends_its_outputs(engine: Engine) -> None:
    for number in range(5):
        engine.add(number, prompt(number, 4), 100)
    engine.step()
    assert [s.id for s in engine.scheduler.running] == [0, 1, 2]
    engine.abort(0)
    engine.abort(4)
    engine.abort(77)
    assert [s.id for s in engine.scheduler.running] == [1, 2]
    assert {output.id for output in engine.step()} == {1, 2, 3}
    for number in (1, 2, 3):
        engine.abort(number)
    assert not engine.busy
    engine.add(0, prompt(0, 4), 2)  # the id is free again
    assert len(finish(engine, [0])[0][0]) == 2


@pytest.mark.parametrize(
    ("ids", "limit", "sampling", "error", "message"),
    [
        ((1,) * 300, 5, {}, LengthError, "300 tokens does not fit a model length of 300"),
        ((), 5, {}, LengthError, "0 tokens"),
        ((1, VOCABULARY), 5, {}, ModelError, "ids beyond the model's 96"),
        ((-1,), 5, {}, ModelError, "ids beyond"),
        ((1,), 0, {}, UsageError, "max_new_tokens is 0"),
        ((1,), 1, {"temperature": -0.1}, UsageError, "temperature -0.1"),
        ((1,), 1, {"top_p": 0.0}, UsageError, "top_p 0.0"),
    ],
)
def test_a_request_that_cannot_be_answered_is_refused(
    engine: Engine, ids: tuple[int, ...], limit: int, sampling: dict, error: type, message: str
) -> None:
    with pytest.raises(error, match=message):
        engine.add(0, ids, limit, **sampling)
    assert not engine.busy


def test_an_id_is_open_once(engine: Engine) -> None:
    engine.add(0, (1,), 1)
    with pytest.raises(ValueError, match="open already"):
        engine.add(0, (1,), 1)
    finish(engine, [0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float16"}, "dtype 'float16'"),
        ({"device": "tpu"}, "device 'tpu' is unknown; auto, cpu, cuda are known"),
        ({"gemm": "int8"}, "gemm 'int8' is unknown; bf16, fp8 are known"),
        ({"attention": "ep"}, "attention 'ep' is unknown; tp, dp are known"),
        ({"max_running": 0}, "max_running is 0"),
        ({"max_model_len": -1}, "max_model_len is -1; it must be 1 or more"),
        ({"max_model_len": 0}, "max_model_len is 0"),
    ],
)
def test_options_that_cannot_be_used_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        EngineOptions(**options)


@pytest.mark.parametrize("speculative", [False, True])
def test_a_warm_up_changes_no_answer(tmp_path: Path, speculative: bool) -> None:
    model = written(tmp_path, mtp=True)
    engine = Engine(model, device="cpu", dtype="float32", threads=1, speculative=speculative)
    answers = []
    for warm_up in (False, True):
        if warm_up:
            engine.runner.warm_up(tokens=21, sequences=4)
        for number in range(4):
            engine.add(number, prompt(number, 9 + number), 12)
        answers.append(finish(engine, list(range(4))))
    assert answers[0] == answers[1]


def test_a_step_that_does_not_fit_in_memory_is_run_again_in_parts(
    random_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model's memory is taken to hold six tokens' activations."""
    engine = Engine(random_model, EngineOptions("cpu", "float32", threads=1))
    for number in range(5):
        engine.add(number, prompt(number, 7), 8)
    expected = finish(engine, list(range(5)))
    run = engine.runner.run

    def run_small(scheduled: list[ScheduledTokens], decoding: Decoding) -> Scores:
        if len(decoding) + sum(item.count for item in scheduled) > limit:
            raise torch.OutOfMemoryError
        return run(scheduled, decoding)

    monkeypatch.setattr(engine.runner, "run", run_small)
    limit = 6
    for number in range(5):
        engine.add(number, prompt(number, 7), 8)
    assert finish(engine, list(range(5))) == expected
    assert engine.scheduler.preempted
    limit = 0
    engine.add(1, prompt(1, 7), 8)
    with pytest.raises(EngineError, match="lower --max-running"):
        finish(engine, [1])


def test_options_may_be_given_by_name(random_model: Path) -> None:
    options = EngineOptions("cpu", "bfloat16", max_model_len=100, threads=1)
    engine = Engine(random_model, options, dtype="float32")
    assert (engine.dtype, engine.max_model_len) == ("float32", 100)
    with pytest.raises(TypeError, match="max_length"):
        Engine(random_model, device="cpu", max_length=10)


def test_a_length_beyond_the_models_is_refused(random_model: Path) -> None:
    options = EngineOptions("cpu", max_model_len=513)
    with pytest.raises(UsageError, match="max_model_len is 513; it must be at most"):
        Engine(random_model, options)


def test_errors_that_a_rank_finds_alone_come_before_the_rendezvous(
    random_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No other rank exists here, so an engine that waits for one would hang."""
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(LaunchError, match="torchrun"):
        Engine(random_model, EngineOptions("cpu"))
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(ParallelError, match="4 attention heads can't be split over 3"):
        Engine(random_model, EngineOptions("cpu"))
    with pytest.raises(ModelError):
        Engine(tmp_path, EngineOptions("cpu"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    (tmp_path / "config.json").write_bytes((random_model / "config.json").read_bytes())
    (tmp_path / "model1-mp2.safetensors").touch()
    with pytest.raises(CheckpointError, match="model0-mp2"):
        Engine(tmp_path, EngineOptions("cpu"))
