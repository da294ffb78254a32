"""A sweep as a table for a terminal, and as JSON."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlperf.submission.tree import SCENARIOS
from mlperf.sweep.results import LATENCIES, Result, Verdict, best, on_front
from terminal import aligned

BEST = "best"  # in the sweep's folder: where the printed command lines put their results
FIGURES = {
    "samples/s": ("samples_per_second", "{:.3f}"),
    "tokens/s": ("tokens_per_second", "{:.1f}"),
    "TTFT p99 ms": ("ttft_p99_ms", "{:.1f}"),
    "TPOT p99 ms": ("tpot_p99_ms", "{:.2f}"),
}
HEADS = ("point", "mode", *FIGURES, "Pareto", "verdict")
VERDICTS: dict[Verdict, str] = {
    "VALID": "VALID",
    "within": "within the limits, too short to be VALID",
    "over": "over a limit",
    "broken": "not to be relied on",
    "failed": "failed",
    "not run": "not run yet",
}


def text(results: Sequence[Result], output_dir: Path) -> str:
    """A line a point, and the command line of each scenario's best."""
    rows = [HEADS, *(cells(result, marks) for result, marks in marked(results))]
    lines = aligned(rows, range(2, 2 + len(FIGURES)))
    for mode, result in best(results).items():
        lines += ["", f"{SCENARIOS[mode]}: {result.point.label}, {_worth(result)}"]
        lines += [f"  {command(result, output_dir)}"]
        before = result.known_reasons
        lines += [f"  not submittable as it is: {reason}" for reason in before]
    if not best(results):
        lines += ["", "no point is within the limits of its scenario"]
    return "\n".join(lines)


def cells(result: Result, marks: str) -> list[str]:
    """A point's row. `marks`: the latencies on whose Pareto front it is."""
    figures = []
    for name, form in FIGURES.values():
        value = result.figure(name)
        figures.append("-" if value is None else form.format(value))
    return [result.point.label, result.point.mode, *figures, marks, verdict(result)]


def verdict(result: Result) -> str:
    """For people, with the reason of a failure."""
    words = VERDICTS[result.verdict]
    return f"{words}: {result.problem}" if result.problem else words


def command(result: Result, output_dir: Path) -> str:
    """The command line of a point's run, which leaves the sweep's own results as they are."""
    return shlex.join(result.point.command_to("--output-dir", output_dir / BEST))


def as_json(results: Sequence[Result], output_dir: Path) -> dict[str, Any]:
    """Points with figures, and the best of each scenario, as plain values."""
    return {
        "points": [
            {
                "label": result.point.label,
                "engine": result.point.engine.name,
                "backend": result.point.engine.backend,
                "mode": result.point.mode,
                "values": dict(result.point.values),
                "folder": str(result.point.folder),
                "command": shlex.join(result.point.command),
                "verdict": result.verdict,
                "problem": result.problem,
                "figures": result.record.get("figures", {}),
                "pareto": marks.split(),
                "versions": result.record.get("versions", {}),
            }
            for result, marks in marked(results)
        ],
        "best": {
            mode: {"label": result.point.label, "command": command(result, output_dir)}
            for mode, result in best(results).items()
        },
    }


def marked(results: Sequence[Result]) -> list[tuple[Result, str]]:
    """Each point with the latencies on whose front it is, such as `TTFT TPOT`."""
    fronts = {name[:4].upper(): on_front(results, name) for name in LATENCIES}
    return [
        (result, " ".join(name for name, places in fronts.items() if place in places))
        for place, result in enumerate(results)
    ]


def _worth(result: Result) -> str:
    """What the best point is worth."""
    return f"{result.figure('tokens_per_second'):.1f} tokens/s, {VERDICTS[result.verdict]}"
