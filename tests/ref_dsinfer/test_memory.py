"""What a rank needs in memory, for R1 and against a model that is really there."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.r1 import R1
from errors import UsageError
from ref_dsinfer import memory
from ref_dsinfer.attention import Attention
from ref_dsinfer.engine import Engine
from ref_dsinfer.kernels import mla
from ref_dsinfer.memory import GPUS, Run

R1_RUN = Run(R1, torch.bfloat16, 8, "tp", length=23_140, max_running=64, step_tokens=2048)


@pytest.mark.parametrize(
    ("attention", "world_size", "gigabytes"),  # as counted on the meta device by hand
    [("tp", 8, 85.8), ("dp", 8, 95.8), ("tp", 16, 43.6), ("dp", 16, 54.3)],
)
def test_the_weights_of_r1(attention: str, world_size: int, gigabytes: float) -> None:
    run = replace(R1_RUN, attention=attention, world_size=world_size)
    assert memory.weights(run) / 1e9 == pytest.approx(gigabytes, abs=0.5)


def test_r1_is_refused_on_gpus_that_are_too_small() -> None:
    needed = memory.need(R1_RUN)
    free = GPUS["H100-80GB"] - memory.CUDA_BYTES
    with pytest.raises(UsageError, match=r"each of 8 GPUs needs 9.*16xH100-80GB, 8xH200, 4xB200"):
        memory.check(R1_RUN, free)
    memory.check(R1_RUN, needed.total - memory.CUDA_BYTES)
    memory.check(replace(R1_RUN, world_size=16), free)
    longer = memory.need(replace(R1_RUN, length=163_840))
    assert longer.cache - needed.cache == (163_840 - 23_140) * 61 * 576 * 2


def test_the_decode_kernel_takes_what_is_counted() -> None:
    assert mla.MOST_PROGRAMS == memory.DECODE_PROGRAMS
    assert max(mla.tile_heads(heads, 2) for heads in (16, 64, 128)) == memory.DECODE_HEADS


def test_weights_are_those_of_a_loaded_model(random_model: Path) -> None:
    engine = Engine(random_model, device="cpu", dtype="float32", max_model_len=100, threads=1)
    model = engine.runner.model
    loaded = [*model.parameters(), model.rotations]
    loaded += [one.unfold for one in model.modules() if isinstance(one, Attention)]
    run = Run(engine.config, torch.float32, 1, "tp", length=100, max_running=4, step_tokens=64)
    by_address = {tensor.data_ptr(): tensor.nbytes for tensor in loaded}  # some are one tensor
    assert memory.weights(run) == sum(by_address.values())
