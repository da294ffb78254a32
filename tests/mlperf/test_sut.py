"""The SUT under LoadGen itself. Settings are made by hand: FromConfig works once in a process."""

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import mlperf_loadgen as lg
import pytest

from backends.drive import running
from backends.echo import EchoEngine
from backends.types import Completion, EngineConfig
from data.journal import Journal, read_journal
from data.workload import Workload, build
from mlperf.qsl import query_sample_library
from mlperf.report import read_detail
from mlperf.sut import Sut

EOS_ID = 1


class Counting:
    """LoadGen's module, counting the responses in each call that completes samples."""

    def __init__(self) -> None:
        self.finished: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(lg, name)

    def QuerySamplesComplete(self, responses: list) -> None:
        self.finished.append(len(responses))
        lg.QuerySamplesComplete(responses)


@dataclass
class Served:
    issued: int
    done: list[Completion]
    journal: list[tuple[int, Completion]]
    calls: list[int]  # completions in each call to LoadGen
    log: dict[str, Any]
    errors: list[str]
    accuracy: list[dict[str, Any]]


def serve(
    workload: Workload, folder: Path, scenario: str, accuracy: bool, passes: int, **options: object
) -> Served:
    settings = lg.TestSettings()
    settings.scenario = getattr(lg.TestScenario, scenario)
    settings.mode = lg.TestMode.AccuracyOnly if accuracy else lg.TestMode.PerformanceOnly
    settings.use_token_latencies = True
    settings.sample_concatenate_permutation = True
    settings.min_duration_ms = 0
    settings.min_query_count = passes * len(workload)
    settings.server_target_qps = 500
    settings.ttft_latency = settings.tpot_latency = 10**9
    log_settings = lg.LogSettings()
    log_settings.log_output.outdir = str(folder)
    reads_tokens = scenario == "Server"
    config = EngineConfig(
        "nowhere",
        coalesce=not reads_tokens,
        options={key: str(value) for key, value in options.items()},
    )
    done: list[Completion] = []

    async def run() -> tuple[int, list[int]]:
        backend = EchoEngine(config)
        with (
            Journal(folder / "journal", {}) as journal,
            query_sample_library(len(workload)) as library,
        ):
            async with running(backend):
                sut = Sut(backend, workload, journal, reads_tokens, done.append)
                sut._lg = counting = Counting()
                await sut.serve(
                    lambda handle: lg.StartTestWithLogSettings(
                        handle, library, settings, log_settings, ""
                    )
                )
        return sut.issued, counting.finished

    issued, calls = asyncio.run(run())
    detail = read_detail(folder / "mlperf_log_detail.txt")
    return Served(
        issued,
        done,
        read_journal(folder / "journal"),
        calls,
        detail.values,
        list(detail.errors),
        json.loads((folder / "mlperf_log_accuracy.json").read_text()),
    )


def ids(hexadecimal: str) -> tuple[int, ...]:
    """Token ids as LoadGen logs them: little-endian, 32 bits each."""
    data = bytes.fromhex(hexadecimal)
    return tuple(
        int.from_bytes(data[at : at + 4], "little", signed=True) for at in range(0, len(data), 4)
    )


@pytest.fixture
def workload(echo_model: Path, data_set: Any) -> Workload:
    return build(data_set(12), None, EngineConfig(str(echo_model)), 100)


@pytest.mark.parametrize("scenario", ["Offline", "Server"])
def test_every_sample_is_completed_once_and_kept_by_query_id(
    workload: Workload, tmp_path: Path, scenario: str
) -> None:
    served = serve(workload, tmp_path, scenario, accuracy=False, passes=3)
    assert served.errors == []
    assert served.issued == 36
    assert len(served.done) == len(served.journal) == sum(served.calls) == 36
    assert len({completion.request_id for _, completion in served.journal}) == 36
    assert sorted(index for index, _ in served.journal) == sorted([*range(12)] * 3)
    for index, completion in served.journal:
        assert tuple(completion.token_ids) == workload.prompt_ids[index]
    assert served.log["result_query_count"] == (1 if scenario == "Offline" else 36)


@pytest.mark.parametrize("scenario", ["Offline", "Server"])
def test_loadgen_logs_the_ids_of_every_completion(
    workload: Workload, tmp_path: Path, scenario: str
) -> None:
    served = serve(workload, tmp_path, scenario, accuracy=True, passes=1, token_ms=0.1)
    assert served.errors == []
    expected = {index: tuple(completion.token_ids) for index, completion in served.journal}
    assert {entry["qsl_idx"]: ids(entry["data"]) for entry in served.accuracy} == expected
    assert len(expected) == 12
    for entry in served.accuracy:
        assert entry["token_count"] == len(expected[entry["qsl_idx"]])
        if scenario == "Server":
            assert ids(entry["token_data"]) == expected[entry["qsl_idx"]][:1]
        else:
            assert "token_data" not in entry


@pytest.mark.parametrize("scenario", ["Offline", "Server"])
def test_an_empty_answer_is_one_end_of_sequence_to_loadgen(
    workload: Workload, tmp_path: Path, scenario: str
) -> None:
    served = serve(workload, tmp_path, scenario, accuracy=True, passes=1, empty_every=4)
    empty = [index for index, completion in served.journal if not len(completion.token_ids)]
    assert len(empty) == 3
    for entry in served.accuracy:
        if entry["qsl_idx"] in empty:
            assert ids(entry["data"]) == (EOS_ID,)
            assert entry["token_count"] == 1
            assert ids(entry.get("token_data", "01000000")) == (EOS_ID,)
    # LoadGen cannot time an answer of one token, and says so
    assert served.errors == ["Number of tokens need to be greater than 1"]


def test_what_ends_together_is_reported_together(workload: Workload, tmp_path: Path) -> None:
    served = serve(workload, tmp_path, "Offline", accuracy=False, passes=50)
    assert sum(served.calls) == 600
    assert len(served.calls) < 60


def test_latencies_are_the_engine_s(workload: Workload, tmp_path: Path) -> None:
    served = serve(
        workload, tmp_path, "Server", accuracy=False, passes=2, first_token_ms=50, token_ms=5
    )
    first_ms = served.log["result_first_token_50.00_percentile_latency_ns"] / 1e6
    token_ms = served.log["result_time_per_output_token_50.00_percentile_ns"] / 1e6
    assert first_ms >= 50
    own_ms = median(
        (one.last_ns - one.first_ns) / (len(one.token_ids) - 1) / 1e6 for one in served.done
    )
    assert 5 <= token_ms < 2 * own_ms  # both longer where others use the machine
