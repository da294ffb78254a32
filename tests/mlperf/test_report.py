import json
from pathlib import Path

import pytest

from backends.types import NO_REUSE, Reuse
from errors import LoadGenError
from mlperf import report


def line(key: str, value: str, is_error: bool = False) -> str:
    error = json.dumps(is_error)
    return f':::MLLOG {{"key": "{key}", "value": {value}, "metadata": {{"is_error": {error}}}}}\n'


def detail(folder: Path, *lines: str) -> report.DetailLog:
    path = folder / "mlperf_log_detail.txt"
    path.write_text("".join(lines))
    return report.read_detail(path)


def test_values_and_errors_are_read(tmp_path: Path) -> None:
    log = detail(
        tmp_path,
        "not LoadGen's\n",
        line("a", "1"),
        line("a", "2"),
        line("error_runtime", '"it broke"', is_error=True),
        line("error_runtime", '"it broke"', is_error=True),
    )
    assert log.values == {"a": 1, "error_runtime": "it broke"}
    assert log.errors == {"it broke": 4}
    assert log.lines == {"a": 2, "error_runtime": 4}


@pytest.mark.parametrize(("written", "read"), [("inf", "inf"), ("-inf", "-inf"), ("-nan", "nan")])
def test_numbers_that_json_has_not_are_read(tmp_path: Path, written: str, read: str) -> None:
    log = detail(tmp_path, line("rate", written), line("text", '"nan, inf"'))
    assert str(log.values["rate"]) == read
    assert log.values["text"] == "nan, inf"


def test_a_torn_last_line_is_skipped_and_a_torn_other_one_not(tmp_path: Path) -> None:
    assert detail(tmp_path, line("a", "1"), line("b", "2")[:40]).values == {"a": 1}
    with pytest.raises(LoadGenError, match="line 1 is damaged"):
        detail(tmp_path, line("b", "2")[:40] + "\n", line("a", "1"))
    with pytest.raises(LoadGenError, match="can't be read"):
        report.read_detail(tmp_path / "missing.txt")


@pytest.mark.parametrize(
    "value",
    ["null", "[]", "7", '{"key": "a"}', '{"key": "a", "value": 1, "metadata": 2}', "[" * 100_000],
)
def test_a_line_of_another_form_is_damaged(value: str, tmp_path: Path) -> None:
    with pytest.raises(LoadGenError, match=r"detail.txt: line 1 is damaged"):
        detail(tmp_path, f":::MLLOG {value}\n", line("a", "1"))


def test_a_folder_in_the_place_of_the_log_is_named(tmp_path: Path) -> None:
    with pytest.raises(LoadGenError, match="can't be read: Is a directory"):
        report.read_detail(tmp_path)


def test_figures_come_from_either_scenario(tmp_path: Path) -> None:
    offline = detail(
        tmp_path, line("result_samples_per_second", "2.5"), line("result_tokens_per_second", "90")
    )
    assert report.performance_figures(offline) == {
        "samples_per_second": 2.5,
        "tokens_per_second": 90,
    }
    server = detail(
        tmp_path,
        line("result_completed_samples_per_sec", "2.5"),
        line("result_completed_tokens_per_second", "90"),
        line("result_first_token_99.00_percentile_latency_ns", "1500000"),
    )
    assert report.performance_figures(server) == {
        "samples_per_second": 2.5,
        "tokens_per_second": 90,
        "ttft_p99_ms": 1.5,
    }


def test_reasons_are_loadgen_s(tmp_path: Path) -> None:
    valid = detail(tmp_path, line("result_validity", '"VALID"'))
    assert report.performance_reasons(valid) == []
    early = detail(
        tmp_path,
        line("result_validity", '"INVALID"'),
        line("result_invalid_reason", '""'),
        line("early_stopping_met", "false"),
        line("early_stopping_ttft_result", '" * Run unsuccessful.  * Processed 9 queries."'),
        line("early_stopping_tpot_result", '" * Run successful."'),
    )
    assert report.performance_reasons(early) == [
        "INVALID: early stopping, TTFT: Run unsuccessful. Processed 9 queries."
    ]
    unknown = detail(tmp_path, line("result_validity", '"INVALID"'))
    assert report.performance_reasons(unknown) == ["INVALID: LoadGen's log gives no reason"]
    assert report.performance_reasons(detail(tmp_path, line("a", "1")))  # cut off before its end


def test_the_table_has_the_reason(tmp_path: Path) -> None:
    log = report.DetailLog({"result_validity": "VALID"}, {})
    figures = {"samples_per_second": 2.5, "tokens_per_second": 90.0}
    outcome = report.Outcome(
        "offline", "performance", tmp_path, figures, ["one", "two"], log, NO_REUSE
    )
    text = report.table(outcome)
    assert "no, because one\n" in text
    assert "and two\n" in text
    assert report.record(outcome)["not_submittable_because"] == ["one", "two"]
    good = report.Outcome("offline", "performance", tmp_path, figures, [], log, NO_REUSE)
    assert "nothing in this run rules it out" in report.table(good)
    assert report.record(good)["submittable"] is True


def test_the_record_is_json_whatever_the_figures(tmp_path: Path) -> None:
    figures = {"samples_per_second": float("nan"), "tokens_per_second": float("inf")}
    log = report.DetailLog({}, {})
    record = report.record(
        report.Outcome("server", "performance", tmp_path, figures, [], log, NO_REUSE)
    )
    json.dumps(record, allow_nan=False)
    assert record["figures"] == {"samples_per_second": None, "tokens_per_second": None}


@pytest.mark.parametrize(
    ("reuse", "message", "refused"),
    [
        (NO_REUSE, "off", False),
        (Reuse(None), "unknown", False),
        (Reuse(True), "on, use unknown", False),
        (Reuse(False), "off", False),
        (Reuse(True, 0, 0), "on, 0 tokens reused", False),
        (Reuse(True, 300, 3), "on, 300 tokens reused", False),  # the common prefix
        (Reuse(True, 300, 4), "on, 300 tokens reused", True),
        (Reuse(None, 4, 4), "4 tokens reused", True),  # one prompt of a hundred
        (Reuse(True, 16, block_size=16), "on, 16 tokens reused", True),  # more than they share
        (Reuse(True, 300), "on, 300 tokens reused", False),
        (Reuse(True, 301), "on, 301 tokens reused", True),
    ],
)
def test_reused_prefixes_keep_a_run_from_being_submitted(
    reuse: Reuse, message: str, refused: bool
) -> None:
    """A hundred prompts that share three tokens of the template."""
    assert report.describe_reuse(reuse) == message
    reasons = report.reuse_reasons(reuse, 3, 100)
    assert len(reasons) == refused
    assert all("tokens of 100 prompts came from the prefix cache" in reason for reason in reasons)
