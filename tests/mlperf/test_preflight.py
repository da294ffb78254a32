"""The checks before an engine starts."""

import argparse
import json
import os
import shutil
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from safetensors import safe_open

from backends import registry
from backends.types import EngineConfig
from benchmark import REVISION, TASK_ROWS
from data.identity import R1
from data.workload import build
from errors import CheckpointError, OutputError, UsageError
from mlperf import preflight, run, settings
from tests import forked
from tests.conftest import Script
from tests.data.models import make_model
from tests.jobs import GIVEN, TINY

ROWS = 20


def make_plan(
    folder: Path, backend: str = "echo", model: Path = TINY / "model", **fields: object
) -> preflight.Plan:
    """A run over `ROWS` rows, each of them once."""
    parser = argparse.ArgumentParser()
    run.add_options(parser)
    words = ["--backend", backend, "--input-file", str(TINY / "final_output.parquet")]
    args = parser.parse_args(words)
    config = EngineConfig(str(model), **fields)  # type: ignore[arg-type]
    workload = build(args.input_file, ROWS, config, args.max_new_tokens)
    test_settings = settings.loadgen().TestSettings()
    test_settings.min_duration_ms, test_settings.min_query_count = 0, ROWS
    test_settings.scenario = settings.loadgen().TestScenario.Offline
    spec = registry.lookup(backend)
    return preflight.Plan(args, spec, config, workload, test_settings, folder, folder)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the bundled model, which a test may change."""
    return Path(shutil.copytree(TINY / "model", tmp_path / "model"))


def test_a_dry_run_says_what_would_run_and_runs_nothing(tmp_path: Path) -> None:
    ended = forked.run(
        *("run_mlperf.py", "--backend", "pytorch", "--device", "cpu", *GIVEN, "--dry-run"),
        *("--num-samples", ROWS, "--mode", "server", "--target-qps", 0.5, "--output-dir", tmp_path),
    )
    assert ended.returncode == 0, ended.stderr
    lines = {line.split()[0]: line for line in ended.stdout.splitlines()}
    assert "target_qps 0.5 (--target-qps)" in lines["server,"]
    assert "20 rows, prompts of" in lines["data"]
    assert "pytorch --device cpu" in lines["engine"]
    assert "4096 tokens" in lines["longest"]
    assert "about 40 s" in lines["duration"]
    assert "free" in lines["results"]
    assert not list((tmp_path / "server" / "performance").iterdir())


def test_reasons_against_a_submission_are_in_it(script: Script, tmp_path: Path) -> None:
    rows = sum(TASK_ROWS.values())
    names = ["AIME1983", *["gpqa"] * (rows - 1)]
    frame = {"dataset": names, "question": "q", "text_input": "q", "ground_truth": "A"}
    path = tmp_path / "rows.parquet"
    pd.DataFrame(frame).to_parquet(path)
    code, out, err = script.run("run_mlperf.py", "--input-file", path, "--dry-run")
    assert code == 0, err
    assert f"no, because {path} has 1 rows of aime, not the benchmark's 932" in out
    assert "tokens on average, not the benchmark's 803.8" in out


def test_another_model_than_the_benchmarks_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plan = make_plan(tmp_path)
    [reason] = preflight.check(plan)
    assert "model: this is an unknown model (hidden_size" in reason
    assert "an unknown model" in preflight.describe(plan, [reason])
    other = "4236a6af538feda4548eca9ab308586007567f52"
    for name, revision, reasons in ((R1, REVISION, 0), (R1, other, 1), ("DeepSeek-V3", None, 1)):
        snapshot = tmp_path / name / "snapshots" / (revision or "")
        make_model(snapshot, name)
        findings = list(preflight._model(replace(plan, config=EngineConfig(str(snapshot)))))
        assert len(findings) == reasons, findings
        assert all((revision or name) in reason and REVISION in reason for reason in findings)
    assert "the rules allow" not in caplog.text
    make_model(tmp_path / "fp4", R1, "FP4")
    assert not list(preflight._model(replace(plan, config=EngineConfig(str(tmp_path / "fp4")))))
    assert "this is DeepSeek-R1 in FP4: the rules allow" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda index: index["weight_map"].update(other="model.safetensors"), "has no other"),
        (lambda index: index["metadata"].update(total_size=1 << 40), "says 1099511627776"),
    ],
)
def test_weights_that_are_not_the_indexs(
    change: Callable[[dict], None], message: str, model: Path, tmp_path: Path
) -> None:
    [file] = (path.name for path in model.glob("*.safetensors"))
    with safe_open(model / file, "pt") as weights:
        index: dict = {"metadata": {}, "weight_map": dict.fromkeys(weights.keys(), file)}
    path = model / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    preflight.check(make_plan(tmp_path, model=model))
    change(index)
    path.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=message):
        preflight.check(make_plan(tmp_path, model=model))


def test_a_request_that_does_not_fit_in_memory(model: Path, tmp_path: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 10**8}))
    with pytest.raises(UsageError, match=r"longest request \(4096 tokens\) are more than"):
        preflight.check(make_plan(tmp_path, "pytorch", model=model, device="cpu"))


def test_what_only_other_engines_load_is_left_to_them(model: Path, tmp_path: Path) -> None:
    """An fp4 quantization, weights in another format, and none at all."""
    config = json.loads((model / "config.json").read_text())
    quantization = {"quant_method": "modelopt", "quant_algo": "NVFP4"}
    (model / "config.json").write_text(json.dumps(config | {"quantization_config": quantization}))
    preflight.check(make_plan(tmp_path, "vllm", model=model, device="cpu"))
    [weights] = model.glob("*.safetensors")
    weights.rename(model / "pytorch_model.bin")
    preflight.check(make_plan(tmp_path, "vllm", model=model, device="cpu"))
    index = {"metadata": {}, "weight_map": {"lm_head.weight": weights.name}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    dummy = {"load-format": "dummy"}
    preflight.check(make_plan(tmp_path, "vllm", model=model, device="cpu", options=dummy))
    with pytest.raises(CheckpointError, match="is missing"):
        preflight.check(make_plan(tmp_path, "vllm", model=model, device="cpu"))


def test_processes_and_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi = tmp_path / "bin" / "nvidia-smi"
    smi.parent.mkdir()
    smi.write_text("#!/bin/sh\necho 81000\necho 1\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{smi.parent}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    preflight.check(make_plan(tmp_path, "vllm"))
    with pytest.raises(UsageError, match=r"more than the 1\.0 MiB"):
        preflight.check(make_plan(tmp_path, "vllm", tensor_parallel=2))
    with pytest.raises(UsageError, match="4 processes need a GPU each, and 2 are visible"):
        preflight.check(make_plan(tmp_path, "vllm", tensor_parallel=2, data_parallel=2))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    with pytest.raises(UsageError, match=r"more than the 1\.0 MiB"):
        preflight.check(make_plan(tmp_path, "vllm"))
    with pytest.raises(UsageError, match=r"the GPU needs .*, and 0\.0 GB are free: .*1xH100-80GB"):
        preflight.check(make_plan(tmp_path, "pytorch"))


def test_a_disk_without_room_and_all_other_findings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(preflight, "TOKEN_BYTES", 1 << 40)
    preflight.check(make_plan(tmp_path))  # the answers to other data may be short
    assert "20 answers take about" in caplog.text
    monkeypatch.setattr(preflight, "ROWS", ROWS)
    with socket.socket() as listener:
        listener.bind(("", 0))
        port = listener.getsockname()[1]
        plan = make_plan(tmp_path, options={"dist-init-addr": f"10.0.0.1:{port}"})
        with pytest.raises(OutputError, match=rf"{tmp_path}: .* GiB are free, and 20 answers"):
            preflight.check(plan)
    assert f"--engine-arg dist-init-addr=10.0.0.1:{port}: port {port} can't be used" in caplog.text


def test_connections_need_descriptors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    urls = ("http://127.0.0.1:9",)
    monkeypatch.setattr(preflight.resource, "getrlimit", lambda name: (70, 70))
    preflight.check(make_plan(tmp_path, "vllm", endpoints=urls, max_running=6))
    with pytest.raises(UsageError, match=r"up to 20 connections .* the limit is 70"):
        preflight.check(make_plan(tmp_path, "vllm", endpoints=urls))
