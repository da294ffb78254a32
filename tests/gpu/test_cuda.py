"""The engine samples the same tokens on a GPU as on a CPU. Skipped without a GPU."""

from pathlib import Path

import pytest
import torch

from data.prompts import Prompts
from data.samples import read_frame
from ref_dsinfer.engine import Engine
from ref_dsinfer.options import EngineOptions

TINY = Path(__file__).parents[2] / "data" / "tiny"

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def answers(device: str, model: str = "model", graphs: bool = True) -> dict[int, list[int]]:
    engine = Engine(TINY / model, EngineOptions(device, "float32", max_running=8, graphs=graphs))
    prompts = Prompts(TINY / "model")
    ids: dict[int, list[int]] = {}
    for number, text in enumerate(read_frame(TINY / "final_output.pkl").text_input[::12]):
        ids[number] = []
        engine.add(number, prompts.ids(text), 200, prompts.stop_ids)
    while engine.busy:
        for output in engine.step():
            ids[output.id] += output.token_ids
    engine.close()
    return ids


def test_a_gpu_gives_the_tokens_of_a_cpu() -> None:
    assert answers("cuda") == answers("cpu")


@pytest.mark.parametrize("model", ["model", "model-fp8"])
def test_graphs_give_the_tokens_of_eager_steps(model: str) -> None:
    assert answers("cuda", model, graphs=True) == answers("cuda", model, graphs=False)
