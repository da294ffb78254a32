"""A comparison as text for a terminal, as JSON and as CSV."""

import csv
import io
import json

from mlperf.compare.figures import Figure
from mlperf.compare.pair import Pair
from mlperf.compare.runs import Run, differences
from mlperf.compare.samples import Difference, Samples
from terminal import aligned, one_line

SHOWN = 10  # samples of a list; the page and --json have all
WIDEST = 36  # characters of a setting
VERDICTS = {True: "beyond noise", False: "within noise", None: ""}
CSV_HEAD = (
    *("run", "folder", "figure", "value", "baseline", "ratio", "ratio_low", "ratio_high"),
    *("p", "beyond_noise", "method"),
)


def text(runs: list[Run], pairs: list[Pair]) -> str:
    """What failed first, then figures, settings that differ, and samples."""
    blocks = [
        warnings(runs),
        [f"{run.name}  {run.folder}: {run.title}: {run.verdict.word}" for run in runs],
        *(_figures(pair) for pair in pairs),
        _differences(runs),
        *(_samples(pair) for pair in pairs),
    ]
    return "\n\n".join("\n".join(lines) for lines in blocks if lines)


def warnings(runs: list[Run]) -> list[str]:
    """What has to be known of each run before its figures are read."""
    return [f"{run.name}, {run.folder}: {warning}" for run in runs for warning in run.warnings]


def as_json(runs: list[Run], pairs: list[Pair]) -> str:
    """The whole comparison."""
    content = {
        "runs": [
            {
                "name": run.name,
                "folder": str(run.folder),
                "title": run.title,
                "warnings": run.warnings,
                "figures": run.figures,
                "verdict": run.verdict.word,
                "not_submittable_because": list(run.verdict.reasons),
            }
            for run in runs
        ],
        "differences": differences(runs),
        "pairs": [pair.as_json() for pair in pairs],
    }
    return json.dumps(content, indent=2, allow_nan=False)


def as_csv(runs: list[Run], pairs: list[Pair]) -> str:
    """A row for each figure of each run; the first run is the baseline of the others."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_HEAD)
    first = runs[0]
    for name, value in first.figures.items():
        writer.writerow([first.name, first.folder, name, value, *[""] * 7])
    for pair in pairs:
        for one in pair.figures:
            bounds = (one.interval.low, one.interval.high) if one.interval else ("", "")
            row = (one.second, one.first, one.ratio, *bounds, one.p, one.beyond_noise, one.method)
            writer.writerow([pair.second.name, pair.second.folder, one.name, *row])
    return out.getvalue().rstrip("\n")


def _figures(pair: Pair) -> list[str]:
    if not pair.figures:
        return []
    first, second = pair.first.name, pair.second.name
    heads = ["", first, second, f"{second}/{first}", "95 %", "", ""]
    mark = " *" if pair.unlike else ""
    rows = [heads, *(_row(figure, mark) for figure in pair.figures)]
    lines = aligned(rows, range(1, 4))
    if pair.unlike:
        lines.append(f"* not a comparison of like with like: {pair.unlike}")
    return lines


def _row(figure: Figure, mark: str) -> list[str]:
    interval = ""
    if figure.interval:
        interval = f"{figure.interval.low:.3f} to {figure.interval.high:.3f}"
    elif figure.p is not None:
        interval = f"p = {figure.p:.3g}"
    return [
        figure.label,
        _number(figure.first),
        _number(figure.second),
        "-" if figure.ratio is None else f"{figure.ratio:.3f}{mark}",
        interval,
        VERDICTS[figure.beyond_noise],
        f"({figure.method})" if figure.method else "",
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}" if abs(value) < 1000 else f"{value:.1f}"


def _differences(runs: list[Run]) -> list[str]:
    every = differences(runs)
    if not every:
        return []
    # engines have hundreds of settings that others have not
    rows = {name: values for name, values in every.items() if None not in values}
    width = max(map(len, rows), default=0)
    heads = "  ".join(run.name.ljust(WIDEST) for run in runs)
    lines = ["settings that differ:", f"  {''.ljust(width)}  {heads}".rstrip()]
    for name, values in rows.items():
        cells = (_short(str(value)).ljust(WIDEST) for value in values)
        lines.append(f"  {name.ljust(width)}  {'  '.join(cells)}".rstrip())
    if left := len(every) - len(rows):
        lines.append(f"  and {left} that only some of the runs have: see the page, or --json")
    return lines


def _short(value: str) -> str:
    cell = one_line(value)
    return cell if len(cell) <= WIDEST else f"{cell[: WIDEST - 1]}…"


def _samples(pair: Pair) -> list[str]:
    title = f"samples of {pair.first.name} and {pair.second.name}"
    if pair.samples is None:
        return [f"{title}: not compared: {pair.refusal}"]
    samples = pair.samples
    lines = [f"{title}: {len(samples)}, of which {samples.alike} have the same tokens"]
    lines += [f"  {line}" for line in summary(samples)]
    lines += [f"  {_difference(one)}" for one in samples.differences[:SHOWN]]
    lines += _more(len(samples.differences))
    if samples.grades:
        head, score, *_ = str(samples.grades).splitlines()
        lines += [f"grades: {head}", f"  {score}"]
        lines += [f"  {flip}" for flip in samples.grades.flips[:SHOWN]]
        lines += _more(len(samples.grades.flips))
    return lines


def summary(samples: Samples) -> list[str]:
    """Where answers part, and their lengths."""
    first, second = samples.mean_lengths
    lines = [f"{first:.1f} and {second:.1f} tokens/sample"]
    if samples.finishes:
        lines[0] += f"; {samples.finishes} end by another finish reason"
    if samples.differences:
        lines.append(f"the others part at token {samples.median_token} in the median")
    return lines


def _difference(one: Difference) -> str:
    first, second = (f"[{one_line(text[:_AFTER])}]" for text in one.after)
    return (
        f"row {one.sample_index}, token {one.token}:"
        f" {one_line(one.before[-_BEFORE:])} {first} or {second}"
    )


_BEFORE, _AFTER = 30, 25  # characters of a text in a line


def _more(count: int) -> list[str]:
    return [f"  and {count - SHOWN} more: see the page, or --json"] if count > SHOWN else []
