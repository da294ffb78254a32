"""Latencies of single requests, from the timeline."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

    from data.timeline import Timeline

LATENCIES = ("ttft_ms", "tpot_ms", "latency_s")


def requests(timeline: "Timeline") -> "pd.DataFrame":
    """The timeline's requests with LATENCIES; NaN where a time is not known.

    TPOT is as LoadGen counts it: the time from the first token to the last, by the tokens after the
    first. An answer of one token has none.
    """
    frame = timeline.requests
    later = frame["answer_tokens"] - 1
    return frame.assign(
        ttft_ms=1e3 * (frame["first_token_s"] - frame["arrival_s"]),
        tpot_ms=1e3 * (frame["finish_s"] - frame["first_token_s"]) / later.where(later > 0),
        latency_s=frame["finish_s"] - frame["arrival_s"],
    )


def with_latencies(samples: "pd.DataFrame", timeline: "Timeline | None") -> "pd.DataFrame":
    """Samples with the LATENCIES and the endpoint of their requests, by their column `query`."""
    if timeline is None:
        return samples.assign(endpoint=None, **dict.fromkeys(LATENCIES, float("nan")))
    known = requests(timeline).drop_duplicates("request_id").set_index("request_id")
    latencies = known[["endpoint", *LATENCIES]].reindex(samples["query"])
    return samples.assign(**{name: latencies[name].to_numpy() for name in latencies.columns})
