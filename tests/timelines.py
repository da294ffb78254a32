"""Compares a run's timeline with its journal and with LoadGen's log."""

from pathlib import Path

from data.journal import read_journal
from data.recorder import TIMELINE
from data.timeline import Timeline, read_timeline
from mlperf import report
from mlperf.run import JOURNAL

NS = 1e9  # in a second


def check_timeline(folder: Path, logs: Path | None = None) -> Timeline:
    """The timeline of a finished run, once it agrees with the rest of its result folder.

    `logs`: the folder of LoadGen's logs, if that is another one.
    """
    timeline = read_timeline(folder / TIMELINE)
    requests, seconds = timeline.requests, timeline.seconds
    answers = {
        one.request_id: (row, len(one.token_ids), one.finish)
        for row, one in read_journal(folder / JOURNAL)
    }
    columns = (requests[name] for name in ("sample_index", "answer_tokens", "finish"))
    rows = zip(*columns, strict=True)
    assert dict(zip(requests["request_id"], rows, strict=True)) == answers
    assert seconds["tokens"].sum() == requests["answer_tokens"].sum()
    assert (requests["prompt_tokens"] > 0).all()

    assert list(seconds["finish_s"][:-1]) == list(seconds["arrival_s"][1:])
    assert seconds["arrival_s"].iloc[0] == 0
    assert requests["arrival_s"].between(0, requests["finish_s"]).all()
    assert requests["finish_s"].max() <= seconds["finish_s"].iloc[-1]

    values = report.read_detail((logs or folder) / report.DETAIL_LOG).values
    ends = {"": requests["finish_s"]}
    if values["effective_scenario"] == "Server":
        assert values["result_query_count"] == len(requests)
        assert requests["first_token_s"].between(requests["arrival_s"], requests["finish_s"]).all()
        ends["first_token_"] = requests["first_token_s"]
    else:
        assert requests["first_token_s"].isna().all()  # answers come whole
    for name, end_s in ends.items():
        took_ns = (end_s - requests["arrival_s"]) * NS
        # LoadGen's clock starts before it issues the query, and ends when it is told
        assert took_ns.max() <= values[f"result_{name}max_latency_ns"] + 1
        assert took_ns.min() <= values[f"result_{name}min_latency_ns"] + 1
        assert took_ns.mean() <= values[f"result_{name}mean_latency_ns"] + 1
    return timeline
