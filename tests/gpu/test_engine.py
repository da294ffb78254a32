"""The engine on a GPU: the tokens of a CPU, graphs of every kind of step, memory. Skipped without a
GPU."""

from pathlib import Path

import pytest
import torch

from data.prompts import Prompts
from data.samples import read_frame
from ref_dsinfer import cache, fp8, runner
from ref_dsinfer.engine import Engine
from ref_dsinfer.options import EngineOptions
from tests.ref_dsinfer.answering import answers
from tests.ref_dsinfer.conftest import written

TINY = Path(__file__).parents[2] / "data" / "tiny"

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with an MTP layer, some of whose drafts are right."""
    path = tmp_path_factory.mktemp("drafting") / "hf"
    return written(path, hub_keys=True, mtp=True, vocab_size=32, num_hidden_layers=4)


def bundled_answers(device: str, model: str = "model", graphs: bool = True) -> dict[int, list[int]]:
    """Of the bundled model to some rows of its data set."""
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


def test_the_bundled_model_gives_the_tokens_of_a_cpu() -> None:
    assert bundled_answers("cuda") == bundled_answers("cpu")


@pytest.mark.parametrize("name", ["model", "model-fp8"])
def test_graphs_give_the_tokens_of_eager_steps_with_the_bundled_model(name: str) -> None:
    assert bundled_answers("cuda", name) == bundled_answers("cuda", name, graphs=False)


@pytest.fixture(scope="module")
def eager(model: Path) -> dict[int, list[int]]:
    """What it answers without graphs."""
    return answers(model, "cuda").token_ids


def test_a_gpu_gives_the_tokens_of_a_cpu(model: Path, eager: dict[int, list[int]]) -> None:
    assert eager == answers(model, "cpu").token_ids


def test_graphs_of_decodes_and_of_prompts_beside_them(
    model: Path, eager: dict[int, list[int]]
) -> None:
    """No step runs its kernels one by one."""
    graphs = answers(model, "cuda", "graphs")
    assert graphs.token_ids == eager
    assert (graphs.prefills, graphs.decodes) == (0, 0)


def test_graphs_of_drafts_and_their_verification(model: Path, eager: dict[int, list[int]]) -> None:
    graphs = answers(model, "cuda", "graphs", speculative=True)
    assert graphs.token_ids == eager
    assert (graphs.prefills, graphs.decodes) == (0, 0)


def test_long_prompts_run_eagerly_between_graphs(
    model: Path, eager: dict[int, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "FIXED_CONTEXT", 20)
    graphs = answers(model, "cuda", "graphs", speculative=True)
    assert graphs.token_ids == eager
    assert graphs.prefills
    assert not graphs.decodes


def test_fp8_graphs_give_the_tokens_of_eager_steps(model: Path, tmp_path: Path) -> None:
    fp8.write_twin(model, tmp_path / "fp8")
    graphs = answers(tmp_path / "fp8", "cuda", "graphs")
    assert graphs.token_ids == answers(tmp_path / "fp8", "cuda").token_ids
    assert (graphs.prefills, graphs.decodes) == (0, 0)


@pytest.mark.parametrize("speculative", [False, True])
def test_the_cache_takes_what_is_free_beside_the_largest_step(
    speculative: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU of which all but some GB are taken, so that memory is what limits the cache."""
    left, running = 4 << 30, 256
    taken = torch.empty(torch.cuda.mem_get_info()[0] - left, dtype=torch.uint8, device="cuda")
    options = EngineOptions("cuda", "float32", max_running=running, speculative=speculative)
    engine = Engine(TINY / "model", options)
    [pool] = engine.scheduler.pools
    assert pool.blocks * pool.block_size < running * engine.max_model_len  # else nothing limits it
    step = engine.scheduler.step_tokens
    for context in (runner.FIXED_CONTEXT, 0):  # the largest steps as graphs, then eagerly
        monkeypatch.setattr(runner, "FIXED_CONTEXT", context)
        for number in range(running):
            engine.add(number, (1,) * 40, 4)
        while engine.busy:
            engine.step()
        assert engine.scheduler.step_tokens == step, "a step did not fit"
    size = pool.blocks * pool.block_size * engine.config.token_bytes(4)
    free = torch.cuda.mem_get_info()[0]
    share = free / (free + size)
    assert abs(share - (1 - cache.MEMORY_FRACTION)) < 0.05, f"{free} of {free + size} are free"
    engine.close()
    del taken
