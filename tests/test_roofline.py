"""The roofline against figures calculated by hand, for 8×H200."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import roofline, simulate
from benchmarks.roofline import GPUS, Plan
from ref_dsinfer import memory

ROOT = Path(__file__).parent.parent
BOUND = Plan(gpu=GPUS["h200"], attention="once")


@pytest.mark.parametrize(
    ("batch", "experts", "weights_gb", "cache_gb", "step_ms", "hours"),
    [
        (16, 102, 278, 4.5, 7.4, 2.17),
        (64, 222, 585, 18, 15.7, 1.17),
        (256, 256, 671, 72, 19.4, 0.40),
        (1024, 256, 671, 288, 25.0, 0.19),
    ],
)
def test_the_bound_is_the_one_worked_out(
    batch: int, experts: int, weights_gb: float, cache_gb: float, step_ms: float, hours: float
) -> None:
    assert round(roofline.experts_touched(batch)) == experts
    assert roofline.weight_bytes(BOUND, batch) / 1e9 == pytest.approx(weights_gb, rel=0.03)
    assert roofline.cache_bytes(BOUND, batch) / 1e9 == pytest.approx(cache_gb, rel=0.01)
    assert roofline.step_s(replace(BOUND, compute_share=1e9), batch) * 1e3 == pytest.approx(
        step_ms, rel=0.03
    )
    parts = roofline.run_s(replace(BOUND, compute_share=1e9), batch)
    # worked out with the head in fp32, which every step of the drain reads
    assert sum(parts) / 3600 == pytest.approx(hours, rel=0.12)


@pytest.mark.slow
def test_a_measured_layer_replaces_the_floor(tmp_path: Path) -> None:
    measured = replace(BOUND, layer_s={16: 1e-3, 64: 2e-3})
    head = roofline.HEAD / 8 / BOUND.gpu.bandwidth
    for batch, layer in ((1, 1e-3), (16, 1e-3), (40, 1.5e-3), (64, 2e-3), (112, 3e-3)):
        assert roofline.step_s(measured, batch) == pytest.approx(61 * layer + head)
    file = tmp_path / "kernels.json"
    file.write_text(json.dumps({"moe_layer_us": {"16": 1000.0, "64": 2000.0}}))
    ended = subprocess.run(
        [sys.executable, "benchmarks/roofline.py", "--measured", file, "--batch", "16"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "layer_s: {16: 0.001, 64: 0.002}" in ended.stdout


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["tp", "dp"])
def test_no_layout_beats_the_bound(attention: str) -> None:
    plan = replace(BOUND, attention=attention)
    for batch in (1, 16, 100, 1000):
        assert roofline.step_s(plan, batch) > roofline.step_s(BOUND, batch)
        assert sum(roofline.run_s(plan, batch)) > sum(roofline.run_s(BOUND, batch))


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["tp", "dp"])
def test_predictions_use_the_engines_own_arithmetic(attention: str) -> None:
    plan = replace(BOUND, attention=attention)
    counts = roofline.step_counts(8, attention, 64)
    assert counts.collectives.total() == roofline.collectives(plan)
    factor = 2 * 7 / 8 if attention == "tp" else 7 / 8  # of a tensor, that a rank sends
    exchanged = counts.exchanged.total() * factor
    assert exchanged == pytest.approx(roofline.exchanged_bytes(plan, 64), rel=0.03)
    needed = memory.need(simulate.run_of(8, attention, 512))
    embedding = roofline.VOCABULARY * roofline.HIDDEN * 2 / 8  # of which a step reads few rows
    read = roofline.weight_bytes(plan, math.inf) / 8
    assert read + embedding == pytest.approx(needed.weights, rel=0.01)


@pytest.mark.slow
def test_without_a_gpu_the_kernels_are_not_measured() -> None:
    ended = subprocess.run(
        [sys.executable, "benchmarks/kernels.py"],
        cwd=ROOT,
        env={"CUDA_VISIBLE_DEVICES": "", "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stderr.count("\n")) == (3, 1)
    assert "needs an NVIDIA GPU" in ended.stderr
