"""`check` finds every violation, and nothing in a valid tree."""

import json
import random
from pathlib import Path

import pytest

from errors import InputFileError, SubmissionError, UsageError
from mlperf.submission.check import (
    ENDPOINTS_RULES,
    LOADGEN_RULES,
    RULES,
    SYSTEM_RULES,
    check,
)
from mlperf.submission.findings import Finding
from mlperf.submission.rounds import lookup
from tests.effort import few_fast
from tests.mlperf.submission.conftest import Command
from tests.mlperf.submission.violations import (
    BOX,
    NOTES,
    ORG,
    VALID_EDITS,
    VIOLATIONS,
    Violation,
    field,
)

SEED = 17
COMBINATIONS = 40


def findings(tree: Path, round_name: str = "v6.1") -> list[Finding]:
    return check(tree, lookup(round_name))


def finds(tree: Path, violation: Violation, findings: list[Finding]) -> bool:
    """Whether a finding is of the violation's rule, and of its file or of a folder of it."""
    file = violation.file.as_posix()
    return any(
        one.rule == violation.rule
        and one.level == violation.level
        and (file.startswith(one.file) or one.file.startswith(file))
        for one in findings
    )


def test_a_valid_tree_has_no_findings(tree: Path) -> None:
    assert findings(tree) == []


def test_enough_violations_are_planted_for_every_rule() -> None:
    assert len(VIOLATIONS) >= 40
    assert len({violation.title for violation in VIOLATIONS}) > 40
    elsewhere = {"power", "one-system", "file-size"}  # in tests of their own
    assert {one.rule for one in VIOLATIONS} | elsewhere == {*SYSTEM_RULES, *RULES, *LOADGEN_RULES}


@pytest.mark.parametrize("violation", few_fast([*VIOLATIONS, *NOTES]), ids=lambda one: one.title)
def test_a_violation_is_found(violation: Violation, tree: Path) -> None:
    violation.edit(tree / violation.file)
    faults = findings(tree)
    assert finds(tree, violation, faults), faults
    if violation.level == "note":
        assert [one.level for one in faults] == ["note"]


def test_violations_do_not_hide_each_other(tree: Path) -> None:
    """Random sets of violations of different files: each of them is found."""
    rng = random.Random(SEED)
    for _ in range(COMBINATIONS):
        chosen = {one.file: one for one in rng.sample(VIOLATIONS, 8)}
        # a folder's removal, or a log's, hides what is planted within
        planted = [one for one in chosen.values() if one.name != "missing" and _edits(one)]
        before = {one.file: (tree / one.file).read_bytes() for one in planted}
        for violation in planted:
            violation.edit(tree / violation.file)
        faults = findings(tree)
        for violation in planted:
            assert finds(tree, violation, faults), (violation.title, [p.title for p in planted])
        for file, content in before.items():
            (tree / file).write_bytes(content)
    assert findings(tree) == []


def _edits(violation: Violation) -> bool:
    """Whether a violation leaves a file that other rules can read."""
    hidden = ("readable", "files", "relaxations", "sources", "scenarios")
    return violation.rule not in hidden and violation.name != "no description"


@pytest.mark.parametrize("scenario", ["Offline", "Server", "Interactive"])
def test_values_at_the_limits_are_allowed(tree: Path, scenario: str) -> None:
    for file, edit in VALID_EDITS:
        path = tree / BOX / scenario / file
        before = path.read_bytes()
        edit(path)
        assert findings(tree) == [], file
        path.write_bytes(before)


def test_findings_have_file_line_and_rule(tree: Path) -> None:
    log = tree / BOX / "Server" / "performance" / "run_1" / "mlperf_log_detail.txt"
    log.write_text(log.read_text().replace('"VALID"', '"INVALID"'))
    [finding] = findings(tree)
    number = next(n for n, line in enumerate(log.read_text().splitlines(), 1) if "INVALID" in line)
    place = f"{BOX}/Server/performance/run_1/mlperf_log_detail.txt"
    assert (finding.file, finding.line, finding.rule) == (place, number, "valid")
    assert str(finding).startswith(f"error: {place}:{number}: valid: INVALID: ")


def test_a_reason_of_two_runs_has_two_lines(tree: Path) -> None:
    runs = tree / BOX / "Server" / "runs.json"
    for test in ("performance", "accuracy"):
        field(f"{test}.not_submittable_because", ["it is short"])(runs)
    field("accuracy.resumed", {"samples": 1, "of": 2})(runs)
    lines = runs.read_text().splitlines()
    starts = [lines.index(f'  "{test}": {{') + 1 for test in ("performance", "accuracy")]
    first, resumed, second = (finding.line or 0 for finding in findings(tree))
    assert "it is short" in lines[first - 1]
    assert "it is short" in lines[second - 1]
    assert '"resumed": {' in lines[resumed - 1]
    assert starts[0] < first < starts[1] < resumed
    assert starts[1] < second


def test_json_has_the_findings(
    tree: Path, run: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    run("check", tree, "--json")
    assert json.loads(capsys.readouterr().out) == {"errors": 0, "relaxed": 0, "findings": []}
    field("cooling", "")(tree / ORG / "systems" / "box.json")
    with pytest.raises(SubmissionError, match=r"1 error; the first: .*box\.json: cooling"):
        run("check", tree, "--json")
    [finding] = json.loads(capsys.readouterr().out)["findings"]
    assert finding["rule"] == "system"
    assert finding["message"] == "cooling is empty: it needs a value"


def test_another_round_has_other_seeds(tree: Path, run: Command) -> None:
    faults = findings(tree, "v6.0")
    assert {finding.rule for finding in faults} == {"seeds"}
    assert len(faults) == 9
    with pytest.raises(UsageError, match=r"unknown round 'v5.9' \(known: v6.0, v6.1\)"):
        run("check", tree, "--round", "v5.9")


def test_scenarios_of_two_systems_are_found(tree: Path) -> None:
    runs = tree / BOX / "Server" / "runs.json"
    for test in ("performance", "accuracy", "compliance"):
        field(f"{test}.machine.accelerators", ["B200"] * 8)(runs)
    [finding] = findings(tree)
    assert finding.rule == "one-system"
    assert "another system than in Interactive: machine.accelerators ['H200'" in finding.message


def test_one_of_server_and_interactive_is_required(tree: Path) -> None:
    for scenario in ("Server", "Interactive"):
        (tree / BOX / scenario).rename(tree / scenario)
        expected = [] if scenario == "Server" else ["scenarios"]
        assert [finding.rule for finding in findings(tree)] == expected


def test_the_power_description_is_read_if_there_is_one(tree: Path) -> None:
    path = tree / ORG / "systems" / "box_power.yaml"
    good = "node:\n  chassis:\n    PSUs: [{PowerCapacityWatts: 3000}]\n    Min PSUs Needed: 1\n"
    path.write_text(good)
    assert findings(tree) == []
    of_earlier_round = [one for one in findings(tree, "v6.0") if one.rule == "power"]
    assert [one.level for one in of_earlier_round] == ["note"]
    many, two = good.replace("3000", "many"), good.replace(": 1", ": 2")
    for bad in ("[", "- 1\n", "node: {}\n", many, two):
        path.write_text(bad)
        assert {finding.rule for finding in findings(tree)} == {"power"}, bad


def test_a_tree_of_another_harness_is_checked_without_our_records(tree: Path) -> None:
    for path in tree.rglob("runs.json"):
        path.unlink()
    conf = tree / BOX / "Server" / "user.conf"
    conf.write_text("*.Server.target_qps = 1\n")
    assert findings(tree) == []
    conf.write_text("*.Server.performance_sample_count = 4388\n*.Server.target_qps = 1\n")
    [finding] = findings(tree)  # a line that LoadGen ignores
    assert (finding.rule, finding.level) == ("user-conf", "note")


def test_a_huge_file_is_found(tree: Path) -> None:
    with (tree / BOX / "Offline" / "TEST06" / "trace.json").open("wb") as file:
        file.truncate(50 * 1024 * 1024 + 1)
    assert [finding.rule for finding in findings(tree)] == ["file-size"]


@pytest.mark.parametrize(
    "content", few_fast([b"\xff\xfe\0", b"[" * 100_000, b"null", b'{"a": [1, {}]}', b"\n"])
)
def test_files_of_any_content_are_findings_and_no_traceback(tree: Path, content: bytes) -> None:
    for path in sorted(tree.rglob("*")):
        if path.is_file() and path.suffix in (".json", ".txt", ".conf", ".md"):
            before = path.read_bytes()
            path.write_bytes(content)
            faults = findings(tree)
            harmless = path.suffix == ".md" or "summary" in path.name or path.name == "runs.json"
            assert faults or harmless, path
            path.write_bytes(before)


def test_what_is_no_tree_is_an_error(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(InputFileError, match="no submission tree"):
            findings(path)


def test_the_page_explains_every_rule() -> None:
    page = (Path(__file__).parents[3] / "docs" / "submission.md").read_text(encoding="utf-8")
    for table in (SYSTEM_RULES, RULES, LOADGEN_RULES, ENDPOINTS_RULES):
        for name, rule in table.items():
            summary = (rule.__doc__ or "").splitlines()[0].removesuffix(".")
            assert f"| `{name}` | {summary} |" in page
