"""Constants in files that can't import `benchmark` agree with it."""

from pathlib import Path

import pytest

from benchmark import MODEL, REVISION, ROUND, ROWS
from mlperf.settings import BENCHMARK_CONF, MODES, benchmark

ROOT = Path(__file__).parent.parent


def test_the_docs_name_the_model() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert MODEL in text
    assert REVISION in text


def test_the_settings_are_the_rounds() -> None:
    assert f"round {ROUND}," in BENCHMARK_CONF.read_text(encoding="utf-8")


@pytest.mark.parametrize("mode", MODES)
def test_loadgen_takes_all_rows(mode: str) -> None:
    assert benchmark(MODES[mode])["performance_sample_count_override"] == ROWS
