"""TEST06: verdicts on made-up logs, and complete runs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from errors import GradingError, LoadGenError
from mlperf import compliance, report

if TYPE_CHECKING:
    from tests.conftest import Script

EOS = 1


def data(*ids: int) -> str:
    return b"".join(id_.to_bytes(4, "little") for id_ in ids).hex()


def entries(**changes: Any) -> list[dict[str, Any]]:
    """A log of 100 answers without faults, but for `changes` of the one to sample 7."""
    log = [
        {"qsl_idx": row, "data": data(40, 50 + row), "token_data": data(40), "token_count": 2}
        for row in range(compliance.ANSWERS)
    ]
    log[7] |= changes
    return log


def verdict(folder: Path, log: list[dict[str, Any]], server: bool = True) -> list[bool | str]:
    """The outcome of each check."""
    path = folder / "log.json"
    path.write_text(json.dumps(log))
    lines = compliance.verify(path, EOS, server).text.splitlines()
    words = [line.rpartition(": ")[2] for line in lines[:3]]
    whole = "True" in words and "False" not in words
    assert lines[3] == f"TEST06 verification {'complete' if whole else 'failed'}"
    return [word if word == "Skipped" else word == "True" for word in words]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [True, True, True]),
        ({"data": data(EOS), "token_data": data(EOS), "token_count": 1}, [True, True, True]),
        ({"data": data(40, EOS)}, [True, True, True]),
        ({"data": data(40, EOS, EOS), "token_count": 3}, [True, False, True]),
        ({"data": data(EOS, EOS), "token_data": data(EOS)}, [True, False, True]),
        ({"data": data(40, EOS, EOS, 9), "token_count": 4}, [True, True, True]),
        ({"token_data": data(41)}, [False, True, True]),
        ({"token_data": data(40, 57)}, [False, True, True]),
        ({"token_data": ""}, [False, True, True]),
        ({"token_count": 3}, [True, True, False]),
        ({"token_count": None}, [True, True, False]),
        ({"data": data(41, EOS, EOS), "token_count": 4}, [False, False, False]),
    ],
)
def test_each_rule_is_checked(
    tmp_path: Path, changes: dict[str, Any], expected: list[bool]
) -> None:
    assert verdict(tmp_path, entries(**changes)) == expected
    assert verdict(tmp_path, entries(**changes), server=False) == ["Skipped", *expected[1:]]


def test_faults_name_the_samples(tmp_path: Path) -> None:
    path = tmp_path / "log.json"
    path.write_text(json.dumps(entries(data=data(8, EOS, EOS), qsl_idx=70)))
    first, eos, length = compliance.verify(path, EOS, reads_tokens=True).faults
    for fault in (first, eos, length):
        assert fault.endswith("samples 70")


@pytest.mark.parametrize(
    ("log", "error"),
    [
        (entries()[:99], LoadGenError),
        ([], LoadGenError),
        (entries(data="4"), GradingError),
        (entries(data=None), GradingError),
        (entries(qsl_idx="7"), GradingError),
    ],
)
def test_a_log_that_is_not_whole_is_no_verdict(
    tmp_path: Path, log: list[dict[str, Any]], error: type[Exception]
) -> None:
    with pytest.raises(error, match=r"log\.json"):
        verdict(tmp_path, log)


@pytest.mark.parametrize("mode", ["offline", "server", "interactive"])
def test_a_run_leaves_what_the_submission_tree_needs(
    script: "Script", data_set: Callable[[int], Path], mode: str
) -> None:
    code, out, err = script.run(
        *("run_mlperf.py", "--compliance", "--mode", mode, "--input-file", data_set(150)),
        *("--target-qps", 400, "--engine-arg", "empty_every=9", "--engine-arg", "token_ms=1"),
    )
    assert code == 0, err
    folder = script.folder / "mlperf_results" / mode / "compliance" / "TEST06"
    assert (folder / "verify_accuracy.txt").read_text() in out
    assert "EOS check pass: True\n" in out
    assert f"First token check pass: {'Skipped' if mode == 'offline' else True}\n" in out
    log = json.loads((folder / "accuracy" / "mlperf_log_accuracy.json").read_text())
    assert len(log) == 100
    runs = folder / "performance" / "run_1"
    assert (runs / "mlperf_log_summary.txt").stat().st_size
    values = report.read_detail(runs / report.DETAIL_LOG).values
    settings = {
        "effective_test_mode": "PerformanceOnly",
        "effective_accuracy_log_rng_seed": 720381539243781796,
        "effective_accuracy_log_sampling_target": 100,
        "effective_min_duration_ms": 0,
        "effective_sample_concatenate_permutation": False,
        "requested_min_query_count": 100,
        "effective_qsl_rng_seed": 2085463073848966840,
    }
    assert {key: values[key] for key in settings} == settings
    record = json.loads((folder / "run.json").read_text())
    assert record["test"] == "compliance"
    reasons = record["not_submittable_because"]
    # the audit's own settings are none, nor is LoadGen's verdict on so few queries
    assert [reason.split()[0] for reason in reasons[:2]] == ["150", "--target-qps"]
    assert all(reason.startswith("LoadGen logged an error: Number of") for reason in reasons[2:])


def test_options_that_contradict_the_test_are_refused(
    script: "Script", data_set: Callable[[int], Path]
) -> None:
    run = ("run_mlperf.py", "--compliance", "--input-file", data_set(3))
    for options, word in (
        (("--accuracy",), "not allowed with argument"),
        (("--min-duration", 5), "leave them out"),
        (("--min-query-count", 5), "leave them out"),
    ):
        code, _, err = script.run(*run, *options)
        assert code == 2
        assert word in err.splitlines()[-1]
