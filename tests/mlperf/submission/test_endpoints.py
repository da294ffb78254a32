"""Results of the endpoints client, which round v6.1 allows."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mlperf.submission.check import ENDPOINTS_RULES, check
from mlperf.submission.rounds import lookup
from tests.mlperf.submission.violations import BOX, Edit, field, remove, text, written

MS = 1_000_000  # nanoseconds
CONFIG, SUMMARY = Path("config.yaml"), Path("performance", "result_summary.json")
SCORES = Path("accuracy", "accuracy_results.json")
P99 = "early_stopping_percentiles"


def rules(tree: Path, round_name: str = "v6.1") -> list[str]:
    return sorted({finding.rule for finding in check(tree, lookup(round_name))})


@pytest.fixture
def folder(tree: Path) -> Path:
    """The Interactive folder of a valid tree, with the endpoints client's files in it."""
    folder = tree / BOX / "Interactive"
    for path in sorted(folder.iterdir()):
        if path.name not in ("measurements.json", "README.md"):
            remove(path)
    for name in ("performance", "accuracy"):
        (folder / name).mkdir()
    (folder / CONFIG).write_text(
        "type: online\nsettings:\n  load_pattern: {type: poisson, target_qps: 0.5}\n  runtime:\n"
        "    min_duration_ms: 600000\n    dataloader_random_seed: 2747215439041700203\n"
        "    scheduler_random_seed: 16159082839903944936\n"
    )
    summary: dict[str, Any] = {
        "n_samples_issued": 4388,
        "n_samples_failed": 0,
        "duration_ns": 9_000_000 * MS,
        "qps": 0.49,
        "tps": 1_900.5,
        "ttft": {P99: {"99.0": 1_400 * MS}},
        "tpot": {P99: {"99": 14 * MS}},
    }
    (folder / SUMMARY).write_text(json.dumps(summary, indent=2))
    parts = [
        {"score": 82.5, "total_samples": 4000, "output_sequence_lengths": {"avg": 3900.5}},
        {"score": 80.0, "total_samples": 388, "output_sequence_lengths": {"avg": 3000.0}},
    ]
    (folder / SCORES).write_text(json.dumps({"accuracy_scores": parts}, indent=2))
    return folder


def test_valid_results_have_no_findings(tree: Path, folder: Path) -> None:
    assert rules(tree) == []
    assert rules(tree, "v6.0") == ["endpoints", "endpoints-settings", "seeds"]


@pytest.mark.parametrize(
    ("rule", "file", "edit"),
    [
        ("endpoints-scenario", CONFIG, text("online", "offline")),
        ("endpoints-settings", CONFIG, text("600000", "60000")),
        ("endpoints-settings", CONFIG, text("274721543904170020", "1")),
        ("endpoints-settings", CONFIG, text("scheduler_random_seed", "seed")),
        ("endpoints-files", CONFIG, written("[")),
        ("endpoints-files", SUMMARY, written("{")),
        ("endpoints-files", SCORES, written("[]")),
        ("files", SCORES, remove),
        ("endpoints-failures", SUMMARY, field("n_samples_failed", 1)),
        ("endpoints-latency", SUMMARY, field(f"ttft.{P99}", {"99.0": 1_600 * MS})),
        ("endpoints-latency", SUMMARY, field(f"tpot.{P99}", {"99.0": 70 * MS})),
        ("endpoints-latency", SUMMARY, field("tpot", {})),
        ("endpoints-score", SCORES, text("388", "387")),
        ("endpoints-score", SCORES, text("82.5", "79.5")),
        ("endpoints-score", SCORES, text("82.5", "0.825")),
        ("endpoints-score", SCORES, text("3900.5", "4700.5")),
        ("endpoints-failures", SUMMARY, field("complete", False)),
        ("endpoints-score", SCORES, field("accuracy_scores", [])),
        ("endpoints-score", SCORES, text('"score"', '"f1"')),
    ],
)
def test_a_violation_is_found(tree: Path, folder: Path, rule: str, file: Path, edit: Edit) -> None:
    edit(folder / file)
    assert rule in rules(tree)


def test_every_rule_is_violated_by_a_test() -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    assert all(f'"{rule}"' in source for rule in ENDPOINTS_RULES)


def test_a_score_below_the_limit_is_allowed_in_the_open_division(tree: Path, folder: Path) -> None:
    text("82.5", "50.5")(folder / SCORES)
    shutil.move(tree / "closed", tree / "open")
    field("division", "open")(tree / "open" / "Acme" / "systems" / "box.json")
    assert [finding.level for finding in check(tree, lookup())] == ["note"]
