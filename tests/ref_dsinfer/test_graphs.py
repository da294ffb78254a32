"""Padded steps, run as for a CUDA graph but not captured, against plain ones."""

from pathlib import Path

import pytest

from errors import UsageError
from ref_dsinfer import runner
from ref_dsinfer.engine import Engine
from ref_dsinfer.graphs import padded_sizes
from ref_dsinfer.options import EngineOptions
from tests.ref_dsinfer.answering import answers
from tests.ref_dsinfer.conftest import written


def test_padded_steps_give_the_same_tokens(random_model: Path) -> None:
    padded, plain = answers(random_model, kind="padded"), answers(random_model)
    assert padded.token_ids == plain.token_ids
    for one_by_one in (
        answers(random_model, kind="padded", in_columns=False),
        answers(random_model, in_columns=False),
    ):
        assert one_by_one.token_ids == plain.token_ids
    assert plain.prefills
    assert not padded.prefills


@pytest.mark.slow
def test_padded_steps_draft_and_verify_the_same_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where long prompts are prefilled between them."""
    model = written(tmp_path, mtp=True)
    plain = answers(model, speculative=True)
    padded = answers(model, kind="padded", speculative=True)
    assert padded.token_ids == plain.token_ids == answers(model).token_ids
    assert plain.prefills
    assert not padded.prefills
    monkeypatch.setattr(runner, "FIXED_CONTEXT", 20)
    both = answers(model, kind="padded", speculative=True)
    assert both.token_ids == plain.token_ids
    assert 0 < both.prefills < plain.prefills
    assert both.decodes > plain.decodes


@pytest.mark.parametrize("most", [1, 3, 64, 100, 512, 700])
def test_every_batch_has_a_size_that_is_not_much_larger(most: int) -> None:
    sizes = padded_sizes(most)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == most
    for count in range(1, most + 1):
        size = next(size for size in sizes if size >= count)
        assert size <= max(2 * count - 1, 1) or size - count < 8


def test_fp8_arithmetic_needs_fp8_weights(random_model: Path) -> None:
    with pytest.raises(UsageError, match="needs block-fp8 weights"):
        Engine(random_model, EngineOptions("cpu", gemm="fp8"))
    with pytest.raises(UsageError, match="gemm 'int8'"):
        EngineOptions("cpu", gemm="int8")  # type: ignore[arg-type]  # refused at run time too
