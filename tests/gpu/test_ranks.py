"""Two ranks on two GPUs under torchrun. Skipped where there are fewer."""

from pathlib import Path

import pytest
import torch

from data.samples import read_frame
from tests.torchrun import Torchrun

ROOT = Path(__file__).parents[2]
SUMS = Path(__file__).with_name("rank_sums.py")
TINY = ROOT / "data" / "tiny"

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
]


@pytest.mark.parametrize("options", [(), ("--attention", "dp"), ("--speculative",)])
def test_results_are_written_although_graphs_hold_communicators(
    options: tuple[str, ...], torchrun: Torchrun, tmp_path: Path
) -> None:
    output = tmp_path / "answers.pkl"
    ended = torchrun.run(
        *(2, ROOT / "run_eval_mpi.py", "--model", TINY / "model", "--device", "cuda"),
        *("--input-file", TINY / "final_output.pkl", "--output-file", output),
        *("--num-samples", 8, *options),
    )
    assert ended.returncode == 0, ended.stderr
    assert len(read_frame(output)) == 8
    assert "captured CUDA graphs" in ended.stderr
    assert "could not be destroyed" not in ended.stderr


def test_sums_in_symmetric_memory_are_nccl_s(torchrun: Torchrun) -> None:
    ended = torchrun.run(2, SUMS)
    assert ended.returncode == 0, ended.stderr
