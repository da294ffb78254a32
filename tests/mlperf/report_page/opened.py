"""What has to be so in every report, opened in a browser: its figures are those of the logs."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mlperf import compliance, report
from mlperf.run import RECORD
from tests.browser import Tab
from tests.jobs import figures

READY = "/samples$/.test(find('count').textContent)"
TILES = """Object.fromEntries([...document.querySelectorAll('.tiles > div')].map((tile) =>
  [tile.querySelector('dt').textContent, tile.querySelector('dd').firstChild.textContent]))"""
TABLES = """Object.fromEntries([...document.querySelectorAll('figure.chart')].map((chart) =>
  [chart.querySelector('h3').textContent, [...chart.querySelectorAll('tbody tr')].map((row) =>
    [...row.cells].map((cell) => cell.textContent))]))"""
# What LoadGen's log calls the figures, and their factor
IN_LOG = {
    "tokens/s": (("result_tokens_per_second", "result_completed_tokens_per_second"), 1.0),
    "samples/s": (("result_samples_per_second", "result_completed_samples_per_sec"), 1.0),
    "TTFT, 99th percentile": (("result_first_token_99.00_percentile_latency_ns",), 1e-6),
    "TPOT, 99th percentile": (("result_time_per_output_token_99.00_percentile_ns",), 1e-6),
}
PERCENTILES = {
    "Time to first token (TTFT)": "result_first_token_{}_percentile_latency_ns",
    "Time per output token (TPOT)": "result_time_per_output_token_{}_percentile_ns",
}


def shown(text: str) -> float:
    """A number as a page shows it, with or without a unit."""
    return float(text.split()[0].replace(",", ""))


def close(value: float) -> Any:
    """What a figure of four digits shows of a value."""
    return pytest.approx(value, rel=5e-4)


def check_report(tab: Tab, folder: Path) -> None:
    """Open the report of a finished run, and compare it with LoadGen's logs and the answers."""
    within = folder / compliance.LOGS
    values = report.read_detail((within if within.exists() else folder) / report.DETAIL_LOG).values
    tab.open(f"file://{folder}/report.html")
    tab.until(READY)
    assert tab.complaints == []
    tiles, tables = tab.value(TILES), tab.value(TABLES)
    if (folder / "accuracy.txt").exists():
        score, length = figures((folder / "accuracy.txt").read_text())
        assert shown(tiles["exact_match"]) == close(score)
        assert shown(tiles["tokens per sample"]) == pytest.approx(length, abs=0.05)
    if json.loads((folder / RECORD).read_text())["test"] != "accuracy":
        logged = {
            name: values[key] * factor
            for name, (keys, factor) in IN_LOG.items()
            for key in keys
            if key in values
        }
        assert len(logged) == (4 if values["effective_scenario"] == "Server" else 2)
        assert {name: shown(tiles[name]) for name in logged} == {
            name: close(value) for name, value in logged.items()
        }
        for title, key in PERCENTILES.items():
            for share, loadgen, measured in tables.get(title, ())[:-1]:
                value = values[key.format(f"{float(share[1:]):.2f}")] / 1e6
                assert shown(loadgen) == close(value)
                assert shown(measured) > 0
    frame = pd.read_parquet(folder / "results.parquet")
    assert tab.value("samples.length") == len(frame)
    row = len(frame) // 2
    tab.value(f"location.hash = '#row-{row}'")
    tab.until(f"find('detail').querySelector('h3') && opened === {row}")
    texts = tab.value("[...document.querySelectorAll('#detail pre')].map((one) => one.textContent)")
    answer = frame["model_output"][row]
    if not set(answer) - set(map(chr, range(32, 127))):
        assert [text for text in texts[1:] if text != "(empty)"] == [
            part.strip() for part in answer.split("</think>", 1) if part.strip()
        ]
