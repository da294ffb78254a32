"""What flashinfer is asked to compute, without a GPU: as torch reads it, the plain attention."""

import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import entrypoint
from benchmarks.r1 import R1
from errors import LaunchError, UsageError
from ref_dsinfer.attention import plain
from ref_dsinfer.engine import Engine
from ref_dsinfer.kernels import flashinfer_mla
from ref_dsinfer.kernels.flashinfer_mla import FlashInfer, Plan, Requests
from ref_dsinfer.options import EngineOptions
from tests import flashinfer_on_cpu
from tests.cuda_on_cpu import Capture, Graph
from tests.ref_dsinfer.answering import answers
from tests.ref_dsinfer.conftest import written

SIZE = 8  # tokens of a block
SEQUENCES, COLUMNS = 6, 5
PADDING = SEQUENCES  # whose block table is the padding's
# Rows by the sequence and how many tokens each sees.
STEPS: dict[str, list[tuple[int, int]]] = {
    "decodes": [(0, 40), (1, 1), (2, 8), (3, 9), (4, 10), (5, 16)],
    "one decode": [(3, 33)],
    "drafts to verify": [(n, 9 + 5 * n + k) for n in range(4) for k in range(4)],
    "prompts from their first token": [(n, 1 + k) for n in range(3) for k in range(10 * n + 1)],
    "a prompt's second chunk, and decodes": [(0, 5), (1, 6), *((2, 20 + k) for k in range(13))],
    "decodes that grow alike": [(n, 11 + n) for n in range(5)],
    "decodes and padding": [(0, 40), (1, 7), (2, 17), *[(PADDING, 1)] * 5],
    "an idle rank": [(PADDING, 1)] * 8,
}


def shape(heads: int, dtype: torch.dtype = torch.float16) -> FlashInfer:
    return FlashInfer(R1, heads, SIZE, dtype, torch.device("cpu"))


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, module in flashinfer_on_cpu.stand_ins().items():
        monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture(params=["its stand-in", "flashinfer"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package's own Python is asked where there is one."""
    if request.param == "its stand-in":
        request.getfixturevalue("stand_in")
        return
    if find_spec("flashinfer") is None:
        pytest.skip("needs flashinfer: pip install -r requirements/flashinfer.txt")
    flashinfer_on_cpu.replace_below_the_package(monkeypatch.setattr, flashinfer_on_cpu.Native())


class Step:
    """Rows over a random cache."""

    def __init__(self, rows: list[tuple[int, int]], heads: int) -> None:
        blocks = SEQUENCES * COLUMNS + 1
        tables = np.random.default_rng(0).permutation(blocks - 1).reshape(SEQUENCES, COLUMNS)
        self.tables = np.append(tables, np.full((1, COLUMNS), blocks - 1), 0)
        self.owners, self.lengths = (np.array(column) for column in zip(*rows, strict=True))
        self.blocks_BSL = torch.randn(blocks, SIZE, R1.latent_dim).half()
        self.q_NHL = torch.randn(len(rows), heads, R1.latent_dim).half()

    def requests(self, count: int | None = None) -> Requests:
        return Requests.of(self.owners, self.lengths, self.tables, SIZE, count)

    def expected(self) -> Tensor:
        seen = torch.from_numpy(self.tables[self.owners]), torch.from_numpy(self.lengths)
        q, blocks = self.q_NHL.float(), self.blocks_BSL.float()
        return plain(q, blocks, *seen, R1.kv_lora, R1.softmax_scale)

    def check(self, attended: Tensor) -> None:
        assert attended.dtype == torch.float16
        torch.testing.assert_close(attended.float(), self.expected(), atol=5e-4, rtol=5e-4)


def fixed(library: FlashInfer, rows: int) -> Plan:
    return library.fixed_plan(rows, torch.zeros(SEQUENCES * COLUMNS + rows, dtype=torch.int32))


@pytest.mark.parametrize("heads", [16, 128])
@pytest.mark.parametrize("rows", STEPS.values(), ids=STEPS.keys())
def test_a_plan_means_plain_attention(
    rows: list[tuple[int, int]], heads: int, library: None
) -> None:
    step, flashinfer = Step(rows, heads), shape(heads)
    plan = flashinfer.plan()
    plan.fill(step.requests())
    step.check(plan(step.q_NHL, step.blocks_BSL))
    plan = fixed(flashinfer, len(rows))
    plan.fill(step.requests(count=len(rows)))
    step.check(plan(step.q_NHL, step.blocks_BSL))


@pytest.mark.parametrize("heads", [16, 128])
def test_a_graph_follows_the_plan_that_is_filled_next(heads: int, library: None) -> None:
    """Whatever the steps' requests, it was captured with the same launch."""
    steps = [
        Step((rows + [(PADDING, 1)] * 24)[:24], heads) for rows in STEPS.values() if len(rows) <= 24
    ]
    plan, graph = fixed(shape(heads), 24), Graph()
    first = Step([(PADDING, 1)] * 24, heads)
    plan.fill(first.requests(count=24))
    with Capture(graph):
        attended = plan(first.q_NHL, first.blocks_BSL)
    for step in steps:
        first.q_NHL.copy_(step.q_NHL)
        first.blocks_BSL.copy_(step.blocks_BSL)
        plan.fill(step.requests(count=24))
        graph.replay()
        step.check(attended)


def test_consecutive_tokens_of_a_sequence_are_one_request() -> None:
    step = Step([(0, 9), (1, 10), (1, 11), (1, 12), (PADDING, 1), (PADDING, 1)], 1)
    requests = step.requests(count=6)
    assert requests.queries.tolist() == [0, 1, 4, 5, 6, 6, 6]
    assert requests.blocks.tolist() == [0, 2, 4, 5, 6, 6, 6]
    assert requests.lengths.tolist() == [9, 12, 1, 1, 0, 0]
    tables = step.tables
    assert requests.table.tolist() == [*tables[0, :2], *tables[1, :2], *[tables[PADDING, 0]] * 2]


@pytest.mark.parametrize("speculative", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_an_engine_gives_the_tokens_of_its_own_kernels(
    speculative: bool, tmp_path: Path, stand_in: None
) -> None:
    model = written(tmp_path, mtp=True)
    own = answers(model, speculative=speculative)
    plain_steps = answers(model, speculative=speculative, kernels="flashinfer")
    padded = answers(model, kind="padded", speculative=speculative, kernels="flashinfer")
    assert plain_steps.token_ids == padded.token_ids == own.token_ids
    assert not padded.prefills


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"device": torch.device("cpu")},
            "this run is on cpu: use --kernels own",
        ),
        ({"dtype": torch.float32}, "the KV cache is float32: use --dtype bfloat16, or"),
        ({"config": replace(R1, kv_lora=192)}, "this model's have 192 and 64: use --kernels own"),
        ({"config": replace(R1, rope_dim=32)}, "this model's have 512 and 32: use --kernels own"),
        ({"heads": 24}, "needs 1, 2, 4 ... 128 heads on a rank, and there are 24: use"),
        ({"heads": 256}, "and there are 256"),
        ({"rows": 20_000}, "and there may be 20000: lower --engine-arg step_tokens or"),
    ],
)
def test_what_it_does_not_support_is_refused(changes: dict[str, Any], words: str) -> None:
    known: dict[str, Any] = {"config": R1, "heads": 16, "dtype": torch.bfloat16, "rows": 2048}
    known |= {"device": torch.device("cuda")}
    values = known | changes
    with pytest.raises(UsageError, match=r"^kernels flashinfer ") as caught:
        flashinfer_mla.refuse_unsupported(**values)
    assert words in str(caught.value)
    flashinfer_mla.refuse_unsupported(**known)


def test_an_engine_on_a_cpu_refuses_it_before_weights_are_loaded(random_model: Path) -> None:
    with pytest.raises(UsageError, match="needs a CUDA device"):
        Engine(random_model, EngineOptions("cpu", kernels="flashinfer"))


def test_a_missing_package_is_a_line_that_names_its_requirements(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "flashinfer", None)
    with pytest.raises(LaunchError, match=r"flashinfer is not installed.*flashinfer\.txt$"):
        entrypoint._with_packages(lambda: print(shape(16)))


def test_what_the_library_raises_is_a_line(stand_in: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def plan(*arguments: Any, **named: Any) -> None:
        raise RuntimeError("Could not find nvcc\nand much more")

    monkeypatch.setattr(flashinfer_on_cpu.Native, "plan", plan)
    with pytest.raises(UsageError, match=r"can't run here \(Could not find nvcc\): use --kernels"):
        shape(16).try_out()
