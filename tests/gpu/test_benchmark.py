"""The benchmark of kernels measures every one, at small shapes. Skipped without a GPU."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from benchmarks import kernels
from ref_dsinfer.gemm import Arithmetic

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("arithmetic", ["bf16", "fp8"])
def test_every_kernel_is_measured(
    arithmetic: Arithmetic,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(kernels, "L2", 2**16)
    monkeypatch.setattr(kernels, "COPY", 2**20)
    dense = dict.fromkeys(kernels.DENSE, (128, 256))
    bench = kernels.Bench(torch.device("cuda"), kernels.SMALL, 128, dense, (8,), ((2, 16),))
    kernels.run(bench, arithmetic, tmp_path / "times.json")
    _, _, *lines = capsys.readouterr().out.splitlines()
    assert len(lines) == (15 if find_spec("flashinfer") else 14)
    assert all(len([float(figure) for figure in line.split()[-3:]]) == 3 for line in lines)
    assert set(json.loads((tmp_path / "times.json").read_text())["moe_layer_us"]) == {"8"}
