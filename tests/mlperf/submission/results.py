"""Result folders like those of full runs, without the hours that these take.

The logs have LoadGen's form, and the values of a valid run unless a test changes them.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmark import TASK_ROWS
from mlperf.submission.rounds import ROUNDS

ROWS = 4388
MS = 1_000_000  # nanoseconds
SCENARIOS = {"offline": "Offline", "server": "Server", "interactive": "Server"}
RATES = {"offline": 6.0, "server": 1.0, "interactive": 0.5}  # of mlperf/user.conf
LIMITS = {"server": (2000, 80), "interactive": (1500, 15)}  # ms
MACHINE = {"cpu": "Xeon", "accelerators": ["H200"] * 8}


def entry(key: str, value: object, is_error: bool = False) -> str:
    """A line of LoadGen's detail log."""
    content = {
        "key": key,
        "value": value,
        "time_ms": 0.1,
        "namespace": "mlperf::logging",
        "event_type": "POINT_IN_TIME",
        "metadata": {"is_error": is_error, "is_warning": False, "file": "x.cc", "line_no": 1},
    }
    return f":::MLLOG {json.dumps(content)}\n"


def log_values(mode: str, test: str, round_name: str = "v6.1") -> dict[str, Any]:
    """The values of a valid run's detail log."""
    offline = mode == "offline"
    values: dict[str, Any] = {
        "loadgen_version": "6.0.17",
        "sut_name": "PyFastSUT",
        "qsl_reported_total_count": ROWS,
        "requested_use_token_latencies": True,
        "effective_scenario": SCENARIOS[mode],
        "effective_test_mode": "AccuracyOnly" if test == "accuracy" else "PerformanceOnly",
        "effective_samples_per_query": ROWS if offline else 1,
        "effective_target_qps": RATES[mode],
        "effective_target_latency_ns": 0,
        "effective_target_latency_percentile": 0.99,
        "effective_min_duration_ms": 600_000,
        "effective_max_duration_ms": 0,
        "effective_min_query_count": 1 if offline else 100,
        "effective_max_query_count": 0,
        "effective_performance_issue_unique": False,
        "effective_performance_issue_same": False,
        "effective_performance_sample_count": ROWS,
        "effective_accuracy_sample_count": ROWS,
        "effective_sample_concatenate_permutation": True,
    }
    values |= {f"effective_{name}": seed for name, seed in ROUNDS[round_name].seeds.items()}
    if not offline:
        ttft, tpot = LIMITS[mode]
        values["requested_server_ttft_latency"] = ttft * MS
        values["requested_server_tpot_latency"] = tpot * MS
    if test == "performance":
        values |= {"result_validity": "VALID", "early_stopping_met": True}
        values["result_99.00_percentile_latency_ns"] = 50_000 * MS
        values |= {"result_samples_per_second": 6.5, "result_tokens_per_second": 25_000.5}
        values |= {
            "result_completed_samples_per_sec": 6.5,
            "result_completed_tokens_per_second": 25_000.5,
        }
        if not offline:
            values["result_first_token_99.00_percentile_latency_ns"] = (ttft - 100) * MS
            values["result_time_per_output_token_99.00_percentile_ns"] = (tpot - 1) * MS
    return values


def write_log(folder: Path, values: Mapping[str, Any]) -> None:
    """A detail and a summary log."""
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(entry(key, value) for key, value in values.items())
    (folder / "mlperf_log_detail.txt").write_text(text)
    (folder / "mlperf_log_summary.txt").write_text("MLPerf Results Summary\n")


def answers(count: int, length: int, first: bool = False) -> str:
    """An accuracy log of so many answers of so many tokens."""
    data = b"".join(number.to_bytes(4, "little") for number in range(5, 5 + length))
    lines = [
        {"seq_id": row, "qsl_idx": row, "data": data.hex().upper()}
        | ({"token_data": data[:4].hex().upper()} if first else {})
        | {"token_count": length}
        for row in range(count)
    ]
    return "[\n" + ",\n".join(json.dumps(line) for line in lines) + "\n]\n"


def record(mode: str, test: str) -> dict[str, Any]:
    """A run.json."""
    return {
        "command": f"run_mlperf.py --backend vllm --mode {mode}",
        "mode": mode,
        "test": test,
        "submittable": True,
        "not_submittable_because": [],
        "figures": {"samples_per_second": 6.5, "tokens_per_second": 25_000.5},
        "machine": MACHINE,
        "versions": {"python": "3.12.3", "vllm": "0.32.0"},
        "backend": "vllm",
        "engine": {"model": "DeepSeek-R1", "dtype": "auto", "quantization": "fp8", "log": test},
    }


def write_results(
    folder: Path,
    mode: str,
    round_name: str = "v6.1",
    exact_match: float = 81.5,
    tokens_per_sample: float = 3886.2,
    compliance: bool = True,
) -> Path:
    """The folders of a mode's runs in an --output-dir. Returns that of the mode."""
    home = folder / mode
    for test in ("performance", "accuracy"):
        write_log(home / test, log_values(mode, test, round_name))
        (home / test / "run.json").write_text(json.dumps(record(mode, test)))
        (home / test / "engine.json").write_text("{}")
    log = answers(300, 20)
    (home / "accuracy" / "mlperf_log_accuracy.json").write_text(log)
    line = {
        "exact_match": exact_match,
        "tokens_per_sample": tokens_per_sample,
        "num-samples": ROWS,
    }
    digest = hashlib.sha256(log.encode()).hexdigest()
    (home / "accuracy" / "accuracy.txt").write_text(f"{line}\nhash={digest}\n")
    tasks = {task: {"rows": rows} for task, rows in TASK_ROWS.items()} | {"all": {"rows": ROWS}}
    (home / "accuracy" / "results_report.json").write_text(json.dumps({"tasks": tasks}))
    if compliance:
        test06 = home / "compliance" / "TEST06"
        (test06 / "accuracy").mkdir(parents=True)
        (test06 / "accuracy" / "mlperf_log_accuracy.json").write_text(answers(100, 20, True))
        first = "Skipped" if mode == "offline" else "True"
        (test06 / "verify_accuracy.txt").write_text(
            f"First token check pass: {first}\nEOS check pass: True\n"
            "Sample length check pass: True\nTEST06 verification complete\n"
        )
        write_log(test06 / "performance" / "run_1", log_values(mode, "performance", round_name))
        (test06 / "run.json").write_text(json.dumps(record(mode, "compliance")))
    return home


def fill_in(tree: Path) -> None:
    """What a submitter does after init: give each field that it left open a value."""
    for path in (*tree.rglob("systems/*.json"), *tree.rglob("src/**/*.md")):
        text = path.read_text().replace("FILL IN: available, preview or rdi", "available")
        path.write_text(text.replace("FILL IN: ", ""))
