"""Figures, their intervals, and the verdict."""

import pandas as pd
import pytest

from errors import GradingError
from grading.metrics import Evaluation, SandboxInfo, Totals

HELD = SandboxInfo("full", "", {"fork": "held", "file": "held"})


def _totals(rows: int, right: int, tokens: float = 3886.0, **counts: int) -> Totals:
    fixed = dict.fromkeys(("no_answer", "truncated", "timeouts", "ungraded"), 0)
    return Totals("all", rows, right, tokens, **(fixed | counts))


def _evaluation(
    rows: int, right: int, tokens: float = 3886.0, expected: int = 4388, **counts: int
) -> Evaluation:
    return Evaluation(pd.DataFrame(), [], _totals(rows, right, tokens, **counts), HELD, expected)


@pytest.mark.parametrize(
    ("rows", "right", "tokens", "verdict"),
    [
        (4388, 3535, 3886.0, "valid: exact_match reaches 80.5446"),
        (4388, 3534, 3886.0, "NOT VALID: exact_match is below"),  # 80.5378 %
        (
            4388,
            3535,
            3497.6,
            "NOT VALID: exact_match reaches 80.5446, tokens",
        ),
        (4388, 3535, 3497.61, "valid"),
        (4388, 3535, 4274.8, "valid"),
        (4388, 3535, 4274.9, "NOT VALID"),
        (4387, 4387, 3886.0, "not comparable with the official limits: 4387 of 4388 rows"),
    ],
)
def test_the_verdict_is_for_the_whole_data_set(
    rows: int, right: int, tokens: float, verdict: str
) -> None:
    assert _evaluation(rows, right, tokens).verdict.startswith(verdict)


def test_fewer_rows_than_expected_are_reported() -> None:
    partial = _evaluation(80, 80, expected=100)
    assert partial.verdict == "not comparable with the official limits: 80 of 100 rows"
    assert not partial.whole
    whole = _evaluation(100, 80, expected=100)
    assert whole.verdict == "not comparable with the official limits: 100 of 4388 rows"


def test_rows_that_were_not_judged_make_it_no_result() -> None:
    evaluation = _evaluation(4388, 4000, ungraded=349)
    reason = "349 of 4388 rows could not be judged and count as wrong here"
    assert evaluation.verdict == f"NOT A RESULT: {reason}"
    assert not evaluation.whole
    frame = pd.DataFrame(
        {"grading_status": ["ok", "not_graded"], "grading_detail": [None, "there is no sandbox"]}
    )
    ungraded = Evaluation(frame, [], _totals(2, 1, ungraded=1), HELD)
    with pytest.raises(GradingError, match=r"1 of 2 rows .*; the first: there is no sandbox"):
        ungraded.require_all()
    Evaluation(frame, [], _totals(2, 1), HELD).require_all()


# published values of Wilson's interval, without continuity correction
@pytest.mark.parametrize(
    ("right", "rows", "low", "high"),
    [(0, 10, 0, 27.75), (10, 10, 72.25, 100), (81, 263, 25.53, 36.62), (1, 29, 0.61, 17.18)],
)
def test_wilsons_interval(right: int, rows: int, low: float, high: float) -> None:
    assert _totals(rows, right).interval == pytest.approx((low, high), abs=6e-3)


def test_the_table_has_rates_and_optionally_the_lenient_accuracy() -> None:
    task = Totals("math500", 40, 30, 12.25, 1, 2, 3, 4, lenient=77.5)
    evaluation = Evaluation(pd.DataFrame(), [task], _totals(40, 30), HELD)
    head, row, total = evaluation.table().splitlines()
    assert head.split("  ")[-1].strip() == "lenient"
    assert row.split()[:3] == ["math500", "40", "75.00"]
    assert "1 (2.5 %)" in row
    assert "2 (5.0 %)" in row
    assert row.split()[-3:] == ["3", "4", "77.50"]
    assert total.split()[-2:] == ["0", "0"]
    assert "lenient" not in Evaluation(pd.DataFrame(), [], _totals(4, 3), HELD).table()


def test_the_sandbox_line_counts_the_canaries() -> None:
    assert str(HELD) == "sandbox: full (2 of 2 canaries held)"
    assert str(SandboxInfo(None, "no namespaces", {})) == "sandbox: no level holds: no namespaces"
