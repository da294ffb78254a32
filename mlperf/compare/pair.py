"""Two runs compared: the first of the command line with each of the others."""

from dataclasses import dataclass
from typing import Any

from mlperf.compare.figures import Figure, compare_figures
from mlperf.compare.runs import Run
from mlperf.compare.samples import Samples, compare_samples, other_data, other_rows


@dataclass(frozen=True)
class Pair:
    """Two runs, and what differs between their results."""

    first: Run
    second: Run
    unlike: str | None  # why the figures do not measure the same; None if they do
    refusal: str | None  # why no samples are compared
    figures: tuple[Figure, ...]
    samples: Samples | None

    def as_json(self) -> dict[str, Any]:
        """All of it as plain values; infinity, which JSON has not, is None."""
        return {
            "first": self.first.name,
            "second": self.second.name,
            "figures_unlike": self.unlike,
            "figures": [_figure(figure) for figure in self.figures],
            "samples_refused": self.refusal,
            "samples": _samples(self.samples) if self.samples else None,
        }


def compare(first: Run, second: Run) -> Pair:
    """Compare two runs. Raises: any error in the files of one."""
    data = other_data(first, second)
    missing = [run.name for run in (first, second) if run.answers is None]
    refusal = data or (f"no answers of {' and '.join(missing)}" if missing else None)
    samples = None if refusal else compare_samples(first, second)
    unlike = data or _other_test(first, second) or other_rows(first, second)
    figures = compare_figures(first, second, samples, unlike)
    return Pair(first, second, unlike, refusal, figures, samples)


def _other_test(first: Run, second: Run) -> str | None:
    """Runs of two scenarios, or of two tests, measure not the same."""
    for key in ("mode", "test"):
        one, two = first.record.get(key), second.record.get(key)
        if one and two and one != two:
            return f"{first.name} is a run of {one}, {second.name} of {two}"
    return None


def _figure(figure: Figure) -> dict[str, Any]:
    interval = figure.interval
    return {
        "name": figure.name,
        "first": figure.first,
        "second": figure.second,
        "ratio": figure.ratio,
        "ratio_95": [_finite(interval.low), _finite(interval.high)] if interval else None,
        "p": figure.p,
        "beyond_noise": figure.beyond_noise,
        "method": figure.method,
    }


def _samples(samples: Samples) -> dict[str, Any]:
    grades = samples.grades
    return {
        "pairs": len(samples),
        "alike": samples.alike,
        "median_first_difference": samples.median_token,
        "tokens_per_sample": list(samples.mean_lengths),
        "other_finish": samples.finishes,
        "differences": [
            {
                "sample_index": one.sample_index,
                "first_differing_token": one.token,
                "tokens": list(one.lengths),
                "before": one.before,
                "after": list(one.after),
            }
            for one in samples.differences
        ],
        "grades": grades
        and {
            "both_right": grades.both,
            "neither_right": grades.neither,
            "only_first_right": grades.only_first,
            "only_second_right": grades.only_second,
            "exact_match": list(grades.exact_match),
            "mcnemar_p": grades.p,
            "flips": [
                {
                    "sample_index": flip.row,
                    "dataset": flip.dataset,
                    "answers": list(flip.answers),
                    "first_right": flip.first_right,
                }
                for flip in grades.flips
            ],
        },
    }


def _finite(value: float) -> float | None:
    return value if abs(value) < float("inf") else None
