"""flashinfer's attention on a GPU beside our own kernel. Skipped without both."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.r1 import R1
from ref_dsinfer.attention import attend
from ref_dsinfer.batch import Decodes
from ref_dsinfer.kernels import flashinfer_mla
from ref_dsinfer.kernels.flashinfer_mla import Requests
from tests.ref_dsinfer.answering import answers
from tests.ref_dsinfer.conftest import written

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(
        find_spec("flashinfer") is None,
        reason="needs flashinfer: pip install -r requirements/flashinfer.txt",
    ),
]

SIZE, COLUMNS = 64, 8  # tokens of a block, blocks of a sequence
ROWS = 24
# Rows by the sequence and how many tokens each sees.
STEPS = {
    "decodes": [(n, 1 + 22 * n) for n in range(ROWS)],
    "drafts to verify": [(n, 60 + 80 * n + k) for n in range(6) for k in range(4)],
    "a prompt beside decodes": [(0, 512), (1, 65), *((2, 300 + k) for k in range(ROWS - 2))],
}


class Steps:
    """Over one random cache, by both."""

    def __init__(self, heads: int) -> None:
        torch.manual_seed(0)
        count = ROWS * COLUMNS
        tables = np.random.default_rng(0).permutation(count).reshape(ROWS, COLUMNS)
        self.tables, self.config = tables, R1
        shape = (heads, SIZE, torch.bfloat16, torch.device("cuda"), ROWS)
        self.library = flashinfer_mla.load(R1, *shape)
        self.q_NHL = self._random(ROWS, heads)
        self.blocks_BSL = self._random(count, SIZE)
        table = torch.zeros(count, dtype=torch.int32, device="cuda")
        self.fixed = self.library.fixed_plan(ROWS, table)

    def _random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, R1.latent_dim, device="cuda").bfloat16()

    def requests(self, rows: list[tuple[int, int]]) -> Requests:
        owners, lengths = (np.array(column) for column in zip(*rows, strict=True))
        return Requests.of(owners, lengths, self.tables, SIZE, count=ROWS)

    def check(self, attended_NHC: Tensor, rows: list[tuple[int, int]]) -> None:
        """Two roundings to bf16 apart, of probabilities and of results."""
        owners, lengths = (list(column) for column in zip(*rows, strict=True))
        tables_NM = torch.tensor(self.tables[owners], device="cuda")
        seen = Decodes(tables_NM, torch.tensor(lengths, device="cuda"))
        own = attend(self.q_NHL, self.blocks_BSL, seen, R1.kv_lora, R1.softmax_scale)
        largest = self.blocks_BSL.abs().max().item()
        torch.testing.assert_close(
            attended_NHC.float(), own.float(), rtol=2**-7, atol=2**-9 * largest
        )


@pytest.mark.parametrize("heads", [16, 128])
@pytest.mark.parametrize("name", STEPS)
def test_it_attends_as_our_kernel(name: str, heads: int) -> None:
    steps, rows = Steps(heads), STEPS[name]
    for plan in (steps.library.plan(), steps.fixed):
        plan.fill(steps.requests(rows))
        steps.check(plan(steps.q_NHL, steps.blocks_BSL), rows)


@pytest.mark.parametrize("heads", [16, 128])
def test_a_graph_follows_the_plan_that_is_filled_next(heads: int) -> None:
    steps = Steps(heads)
    steps.fixed.fill(steps.requests([(0, 1)] * ROWS))  # as padding, with which graphs are captured
    steps.fixed(steps.q_NHL, steps.blocks_BSL)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        attended_NHC = steps.fixed(steps.q_NHL, steps.blocks_BSL)
    for rows in (*STEPS.values(), [(0, 1)] * ROWS):
        steps.fixed.fill(steps.requests(rows))
        graph.replay()
        steps.check(attended_NHC, rows)


def test_an_engine_answers_by_it_in_graphs(tmp_path: Path) -> None:
    """Roundings differ, so that now and then a token does, and all that follow it."""
    model = written(tmp_path, mtp=True, vocab_size=32, kv_lora_rank=512, qk_rope_head_dim=64)
    own = answers(model, "cuda", dtype="bfloat16").token_ids
    for speculative in (False, True):
        others = answers(model, "cuda", "graphs", speculative, True, "flashinfer", "bfloat16")
        assert (others.prefills, others.decodes) == (0, 0)
        assert [*map(len, others.token_ids.values())] == [*map(len, own.values())]
        same = sum(tokens[0] == own[number][0] for number, tokens in others.token_ids.items())
        assert same >= len(own) - 2
