"""Several ranks under torchrun, on gloo."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ref_dsinfer.config import ModelConfig
from ref_dsinfer.convert import convert
from ref_dsinfer.errors import LaunchError, ParallelError, UsageError
from ref_dsinfer.parallel import Place, check, choose_device

WORKER = Path(__file__).with_name("rank_answers.py")
ROOT = Path(__file__).parents[2]


def run(world: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*torchrun, f"--nproc_per_node={world}", str(WORKER), *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def answers(
    world: int,
    model: Path,
    output: Path,
    dtype: str = "float32",
    temperature: float = 0.0,
    *options: str,
) -> list[list[int]]:
    """What all ranks answer; they must agree."""
    done = run(world, model, output, dtype, temperature, *options)
    assert done.returncode == 0, done.stderr
    found = [json.loads(Path(f"{output}.{rank}").read_text()) for rank in range(world)]
    assert all(one == found[0] for one in found)
    return found[0]


@pytest.fixture(scope="module")
def alone(random_model: Path) -> list[list[int]]:
    _, found = runpy.run_path(str(WORKER))["answers"](random_model, "float32", 0.0)
    assert len({token for answer in found for token in answer}) > 20
    return found


@pytest.mark.parametrize(("world", "converted"), [(2, False), (4, True)])
def test_ranks_together_give_the_tokens_of_one(
    world: int, converted: bool, random_model: Path, alone: list[list[int]], tmp_path: Path
) -> None:
    model = random_model
    if converted:
        model = tmp_path / "converted"
        convert(random_model, model, world)
    assert answers(world, model, tmp_path / "answers") == alone


def test_ranks_stay_together_where_sums_are_rounded_and_tokens_drawn(
    random_model: Path, alone: list[list[int]], tmp_path: Path
) -> None:
    drawn = answers(2, random_model, tmp_path / "answers", "bfloat16", 0.8)
    assert drawn != alone
    assert [len(answer) for answer in drawn[:7]] == [len(answer) for answer in alone[:7]]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_ranks_that_draft_give_the_tokens_of_one_that_does_not(
    drafting_model: Path, tmp_path: Path, temperature: float
) -> None:
    _, alone = runpy.run_path(str(WORKER))["answers"](drafting_model, "float32", temperature)
    convert(drafting_model, tmp_path, 2)
    options = ("float32", temperature, "speculative")
    found = answers(2, tmp_path, tmp_path / "answers", *options)
    found[7] = found[7][: len(alone[7])]  # aborted after so many steps, which may give more tokens
    assert found == alone


def test_a_world_size_that_does_not_divide_ends_all_ranks_with_one_line(
    random_model: Path, tmp_path: Path
) -> None:
    done = run(3, random_model, tmp_path / "answers", "float32", 0)
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert said == ["error: 4 attention heads can't be split over 3 processes"]
    assert "Error: " not in done.stderr.split("error:")[0]


def test_what_must_divide_is_checked(random_model: Path) -> None:
    config = ModelConfig.read(random_model)
    for world in (1, 2, 4):
        check(config, world)
    for world in (3, 5, 8):
        with pytest.raises(ParallelError, match=f"over {world} processes"):
            check(config, world)


def test_r1_splits_over_8_and_16_but_not_over_32() -> None:
    r1 = ModelConfig(
        vocab_size=129280,
        hidden=7168,
        dense_intermediate=18432,
        expert_intermediate=2048,
        layers=61,
        dense_layers=3,
        heads=128,
        q_lora=1536,
        kv_lora=512,
        nope_dim=128,
        rope_dim=64,
        v_dim=128,
        experts=256,
        shared_experts=1,
        active_experts=8,
        groups=8,
        kept_groups=4,
        routed_scale=2.5,
        scoring="sigmoid",
        routing_bias=True,
        normalise_weights=True,
        eps=1e-6,
        rope_theta=1e4,
        yarn=None,
        max_positions=163840,
        fp8=True,
    )
    for world in (1, 2, 4, 8, 16):
        check(r1, world)
    with pytest.raises(ParallelError, match="cuts fp8 blocks of 128"):
        check(r1, 32)


def test_the_place_comes_from_torchruns_environment() -> None:
    assert Place.from_environment({}) == Place()
    names = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    assert Place.from_environment(names) == Place(3, 8, 1, 2)
    with pytest.raises(LaunchError, match="torchrun"):
        Place.from_environment(names | {"RANK": "x"})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to find")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    assert choose_device("auto", Place()) == torch.device("cpu")
    with pytest.raises(UsageError, match="no GPU"):
        choose_device("cuda", Place())
