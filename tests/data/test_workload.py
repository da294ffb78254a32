from collections.abc import Callable
from pathlib import Path

import pytest

from backends.types import EngineConfig
from data import workload
from ref_dsinfer.errors import LengthError

EOS_ID, MODEL_LENGTH = 1, 163_840


def test_rows_become_requests(echo_model: Path, data_set: Callable[[int], Path]) -> None:
    found = workload.build(data_set(9), None, EngineConfig(str(echo_model)), 50)
    assert len(found) == 9
    request = found.request(77, 3)
    assert request.id == 77
    assert request.prompt_ids == found.prompts.ids("question 3???")
    assert request.max_new_tokens == 50
    assert request.stop_ids == {EOS_ID}
    assert request.sampling.temperature == 0


def test_the_first_rows_are_taken(echo_model: Path, data_set: Callable[[int], Path]) -> None:
    found = workload.build(data_set(9), 4, EngineConfig(str(echo_model)), 50)
    assert len(found) == len(found.frame) == len(found.samples) == 4


def test_answers_are_held_to_what_the_model_s_length_leaves(
    echo_model: Path, data_set: Callable[[int], Path]
) -> None:
    config = EngineConfig(str(echo_model), max_model_len=30)
    found = workload.build(data_set(9), None, config, 50)
    for index, ids in enumerate(found.prompt_ids):
        assert found.request(0, index).max_new_tokens == 30 - len(ids)
    assert found.shortest_limit == 30 - max(map(len, found.prompt_ids))


def test_a_prompt_that_leaves_no_room_is_named(
    echo_model: Path, data_set: Callable[[int], Path]
) -> None:
    longest = 3 + len("question 6??????")
    config = EngineConfig(str(echo_model), max_model_len=longest)
    with pytest.raises(LengthError, match=r"row 6: .* 19 tokens"):
        workload.build(data_set(9), None, config, 50)
