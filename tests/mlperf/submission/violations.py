"""Violations to add to a valid tree, each with the rule that must find it."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.mlperf.submission.results import entry

MS = 1_000_000  # nanoseconds
ORG = Path("closed", "Acme")
BOX = ORG / "results" / "box" / "deepseek-r1"
SYSTEM = ORG / "systems" / "box.json"
DETAIL = Path("performance", "run_1", "mlperf_log_detail.txt")
ACCURACY_DETAIL = Path("accuracy", "mlperf_log_detail.txt")
TEXT = Path("accuracy", "accuracy.txt")
VERIFIED = Path("TEST06", "verify_accuracy.txt")
LOG = Path("accuracy", "mlperf_log_accuracy.json")
TTFT = "result_first_token_99.00_percentile_latency_ns"
TPOT = "result_time_per_output_token_99.00_percentile_ns"
Edit = Callable[[Path], object]


@dataclass(frozen=True)
class Violation:
    """An edit of one file, and what finds it."""

    rule: str
    file: Path  # relative to the tree
    edit: Edit
    level: str = "error"
    name: str = ""

    @property
    def title(self) -> str:
        scenario = self.file.parts[5] if BOX in self.file.parents else "system"
        return f"{self.rule}-{scenario}-{self.file.name}-{self.name}".removesuffix("-")


def value(key: str, new: object) -> Edit:
    """Give a key of a detail log another value."""

    def edit(path: Path) -> None:
        lines = path.read_text().splitlines(keepends=True)
        lines = [entry(key, new) if f'"key": "{key}"' in line else line for line in lines]
        path.write_text("".join(lines))

    return edit


def field(key: str, new: object) -> Edit:
    """Give a field of a JSON object another value; a dot separates levels."""

    def edit(path: Path) -> None:
        content = json.loads(path.read_text())
        node = content
        *parents, last = key.split(".")
        for parent in parents:
            node = node[parent]
        node[last] = new
        path.write_text(json.dumps(content, indent=2))

    return edit


def without(key: str) -> Edit:
    """Remove a field of a JSON object."""

    def edit(path: Path) -> None:
        content = json.loads(path.read_text())
        del content[key]
        path.write_text(json.dumps(content, indent=2))

    return edit


def text(pattern: str, new: str) -> Edit:
    """Replace the matches of a pattern."""

    def edit(path: Path) -> None:
        changed, count = re.subn(pattern, new, path.read_text())
        assert count, f"{path} has no {pattern}"
        path.write_text(changed)

    return edit


def added(line: str) -> Edit:
    """Append a text."""
    return lambda path: path.write_text(path.read_text() + line)


def written(content: str) -> Edit:
    """Replace, or make, the file."""
    return lambda path: path.write_text(content)


def answer(**changes: Any) -> Edit:
    """Change the first answer of an accuracy log."""

    def edit(path: Path) -> None:
        entries = json.loads(path.read_text())
        entries[0] |= changes
        path.write_text(json.dumps(entries))

    return edit


def remove(path: Path) -> None:
    """Remove a file or a folder."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def _of(scenario: str, rule: str, file: Path | str, edit: Edit, name: str = "") -> Violation:
    return Violation(rule, BOX / scenario / file, edit, name=name)


VIOLATIONS = (
    # what the official checker overlooks
    _of("Offline", "valid", DETAIL, value("result_validity", "INVALID")),
    _of("Server", "valid", DETAIL, text(r'.*"result_validity".*\n', ""), "missing"),
    _of("Interactive", "latency", DETAIL, value(TTFT, 1_600 * MS), "ttft of Server"),
    _of("Interactive", "latency", DETAIL, value(TPOT, 70 * MS), "tpot of Server"),
    _of("Interactive", "settings", DETAIL, value("requested_server_ttft_latency", 2_000 * MS)),
    _of("Interactive", "settings", DETAIL, value("requested_server_tpot_latency", 80 * MS)),
    _of("Offline", "loadgen-errors", DETAIL, added(entry("error_runtime", "broke", True))),
    _of("Server", "rows", DETAIL, value("qsl_reported_total_count", 240)),
    _of("Server", "test", DETAIL, value("effective_performance_issue_same", True)),
    _of("Offline", "test", DETAIL, value("effective_test_mode", "AccuracyOnly")),
    _of("Offline", "test06-answers", Path("TEST06", LOG), answer(data="05000000" * 19 + "01")),
    _of("Server", "test06-answers", Path("TEST06", LOG), answer(token_data="09000000"), "first"),
    _of("Server", "test06-answers", Path("TEST06", LOG), answer(token_count=19), "length"),
    _of(
        *("Offline", "test06-answers", Path("TEST06", LOG)),
        *(answer(data="0500000001000000" + "01000000", token_count=3), "eos"),
    ),
    _of("Offline", "test06-answers", Path("TEST06", LOG), written("[{"), "cut"),
    _of("Offline", "test06-answers", Path("TEST06", LOG), written("[]"), "none"),
    Violation(
        "test06-errors",
        BOX / "Server" / "TEST06" / DETAIL,
        added(entry("error_runtime", "broke", True)),
    ),
    # performance
    _of("Offline", "seeds", DETAIL, value("effective_qsl_rng_seed", 2465351861681999779)),
    _of("Server", "seeds", DETAIL, value("effective_sample_index_rng_seed", 1)),
    _of("Interactive", "seeds", DETAIL, value("effective_schedule_rng_seed", 0)),
    _of("Offline", "settings", DETAIL, value("effective_min_duration_ms", 599_999)),
    _of("Offline", "settings", DETAIL, value("effective_samples_per_query", 4387)),
    _of("Server", "settings", DETAIL, value("effective_min_query_count", 99)),
    _of("Server", "settings", DETAIL, value("effective_max_query_count", 4388)),
    _of("Server", "settings", DETAIL, value("effective_performance_sample_count", 240)),
    _of("Server", "settings", DETAIL, value("effective_target_latency_ns", 61_000 * MS)),
    _of("Server", "settings", DETAIL, value("effective_target_latency_percentile", 0.9)),
    _of("Offline", "settings", DETAIL, value("requested_use_token_latencies", False)),
    _of("Offline", "settings", DETAIL, value("effective_min_duration_ms", "ten"), "no number"),
    _of("Server", "latency", DETAIL, value("early_stopping_met", False)),
    _of("Server", "latency", DETAIL, value(TTFT, 2_000 * MS), "ttft at the limit"),
    _of("Server", "latency", DETAIL, value(TPOT, None), "no tpot"),
    _of("Server", "test", DETAIL, value("effective_scenario", "Offline")),
    _of("Server", "user-conf", "user.conf", text("target_qps = 1.0", "target_qps = 2")),
    _of("Server", "user-conf", "user.conf", written("llama2-70b.Server.target_qps = 1\n"), "model"),
    _of("Server", "user-conf", "user.conf", written("# nothing\n"), "no rate"),
    # accuracy
    _of("Offline", "score", TEXT, text("'exact_match': 81.5", "'exact_match': 80.5446")),
    _of("Offline", "score", TEXT, text("3886.2", "3497.6046"), "short"),
    _of("Offline", "score", TEXT, text("3886.2", "4274.8502"), "long"),
    _of("Offline", "score", TEXT, text("81.5", "np.float64(81.5)"), "numpy"),
    _of("Offline", "score", TEXT, text("exact_match", "accuracy"), "no figure"),
    _of("Offline", "score", TEXT, added("{'exact_match': 82.0}\n"), "two figures"),
    _of("Server", "graded-rows", TEXT, text("4388", "4387")),
    _of("Server", "rows", ACCURACY_DETAIL, value("effective_accuracy_sample_count", 4387)),
    _of("Server", "test", ACCURACY_DETAIL, value("effective_test_mode", "PerformanceOnly")),
    _of("Server", "loadgen-errors", ACCURACY_DETAIL, added(entry("error", "broke", True))),
    _of("Server", "accuracy-log", TEXT, text("hash=.*", "")),
    _of("Server", "accuracy-log", TEXT, text("hash=.{10}", "hash="), "short"),
    _of("Server", "accuracy-log", LOG, added(" " * 10_241)),
    _of("Server", "accuracy-log", LOG, written("[]"), "no answers"),
    Violation("accuracy-log", BOX / "Offline" / TEXT, text("hash=.", "hash=g"), name="not hex"),
    # compliance
    _of("Server", "test06", VERIFIED, text("EOS check pass: True", "EOS: yes")),
    _of("Server", "test06", VERIFIED, text("token check pass: True", "Skipped")),
    _of("Offline", "files", VERIFIED, remove),
    _of("Offline", "files", Path("TEST06", LOG), written("")),
    # files
    _of("Server", "files", DETAIL, remove),
    _of("Offline", "files", "accuracy/mlperf_log_summary.txt", written("")),
    _of("Interactive", "files", "user.conf", written("")),
    _of("Interactive", "files", "README.md", remove),
    _of("Interactive", "readable", DETAIL, added('\n:::MLLOG {"key": '), "torn"),
    _of("Offline", "readable", DETAIL, text(r"\A", "noise\n")),
    _of("Interactive", "readable", "measurements.json", written("{")),
    _of("Interactive", "readable", "runs.json", written("[]")),
    # descriptions
    _of("Offline", "measurements", "measurements.json", field("weight_data_types", "")),
    _of("Offline", "measurements", "measurements.json", without("retraining")),
    _of("Offline", "placeholder", "measurements.json", field("retraining", "FILL IN: yes or no")),
    Violation("placeholder", SYSTEM, field("cooling", "FILL IN: air or liquid")),
    Violation("placeholder", ORG / "src/deepseek-r1/README.md", added("FILL IN: where\n")),
    Violation("system", SYSTEM, without("framework")),
    Violation("system", SYSTEM, field("operating_system", "")),
    Violation("system", SYSTEM, field("status", "announced")),
    Violation("system", SYSTEM, field("submitter", "Other")),
    Violation("system", SYSTEM, field("division", "open")),
    Violation("system", SYSTEM, field("system_type", "edge")),
    Violation("system", SYSTEM, field("accelerators_per_node", "eight")),
    Violation("system", SYSTEM, field("is_network", "true")),
    Violation("system", SYSTEM, remove, name="no description"),
    Violation("sources", ORG / "src", remove),
    Violation("scenarios", BOX / "Offline", remove),
    Violation("scenarios", BOX / "Multistream", Path.mkdir),
    # what the runs recorded
    _of("Offline", "submittable", "runs.json", field("accuracy.resumed", {"samples": 7})),
    _of(
        *("Offline", "submittable", "runs.json"),
        field("performance.not_submittable_because", ["min_duration 0, less than 600000"]),
    ),
    _of("Offline", "data-set", "runs.json", field("task_rows.aime", 52)),
    _of("Server", "one-configuration", "runs.json", field("accuracy.engine.dtype", "float32")),
    _of("Server", "one-configuration", "runs.json", field("accuracy.machine.cpu", "EPYC")),
    _of("Offline", "relaxations", "relaxations.json", written('{"rows": "240 rows"}')),
)
# Allowed, or wrong in one of two readings of the rules
NOTES = (
    Violation(
        "score", BOX / "Offline" / TEXT, text("81.5", "80.544619"), "note", "checker, not policy"
    ),
    Violation("score", BOX / "Offline" / TEXT, text("81.5", "81.094067"), "note", "just below"),
)
VALID_EDITS = (
    (TEXT, text("81.5", "81.09407")),
    (TEXT, text("3886.2", "3497.60467")),
    (TEXT, text("3886.2", "4274.8501")),
    (DETAIL, value("effective_min_duration_ms", 900_000)),
    (Path("TEST06", LOG), answer(data="0500000001000000", token_count=2)),
)
