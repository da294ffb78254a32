"""Say what a data set or result file holds, and whether it is the benchmark's; or show one row."""

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import entrypoint
from backends.options import whole_number
from data import official, schema
from errors import UsageError
from ref_dsinfer.files import sha256
from terminal import one_line, quoted

if TYPE_CHECKING:
    import pandas as pd

# Columns of a row that are shown as they are, in this order, and their titles; others in one line.
SHOWN = {
    "question": "question",
    "ground_truth": "truth",
    "text_input": "prompt",
    "model_output": "answer",
}
WORDS = {str: "text", bool: "true or false", int: "whole number", float: "number", dict: "object"}
SECTIONS = {"prompt_tokens": "prompts", "answer_tokens": "answers"}
ENDS = 8  # token ids shown of each end


def facts(path: Path) -> dict[str, Any]:
    """What a file holds, as values of JSON.

    Raises: InputFileError, EmptyDataError, ColumnsError.
    """
    from data.samples import read_frame

    frame = read_frame(path)
    tasks = _tasks(frame)
    prompts = _lengths(frame, schema.LENGTH, schema.IDS)
    summary: dict[str, Any] = {
        "file": str(path),
        "bytes": path.stat().st_size,
        "sha256": sha256(path),
        "rows": len(frame),
        "columns": [_column(str(name), column) for name, column in frame.items()],
        "tasks": dict(tasks),
        "prompt_tokens": prompts,
        "differences": _differences(tasks, prompts),
    }
    if "model_output" in frame.columns:
        summary["answer_tokens"] = _lengths(frame, "tok_model_output_len", "tok_model_output")
        if "finish" in frame.columns:
            summary["finish"] = dict(Counter(map(str, frame["finish"])))
        if "prompt_accuracy" in frame.columns:
            summary["exact_match"] = float(frame["prompt_accuracy"].mean())
    return summary


def report(summary: dict[str, Any]) -> str:
    """`facts` for people."""
    lines = [
        f"{summary['file']}: {summary['rows']} rows, {summary['bytes'] / 1e6:.1f} MB",
        f"sha256 {summary['sha256']}",
        "",
        "columns:",
    ]
    for column in summary["columns"]:
        missing = f", {column['missing']} missing" if column["missing"] else ""
        use = f": {column['use']}" if column["use"] else ""
        lines.append(f"  {one_line(column['name'])} ({column['values']}{missing}){use}")
    if summary["tasks"]:
        lines += ["", "rows of each task:"]
        lines += [f"  {one_line(task):<24} {rows:>6}" for task, rows in summary["tasks"].items()]
    for key, title in SECTIONS.items():
        if lengths := summary.get(key):
            lines += ["", _lengths_line(title, lengths)]
    if "finish" in summary:
        counts = ", ".join(f"{one_line(name)} {rows}" for name, rows in summary["finish"].items())
        lines.append(f"finish reasons: {counts}")
    if "exact_match" in summary:
        lines.append(f"exact_match: {summary['exact_match']:.4f}")
    lines += ["", *_verdict(summary["differences"])]
    return "\n".join(lines)


def show(path: Path, row: int) -> str:
    """One row for people: question, truth, prompt and answer as they are, the rest in one line.

    Raises: UsageError if there is no such row; InputFileError, EmptyDataError, ColumnsError.
    """
    cells = _row(path, row)
    lines = [f"{path}: row {row}"]
    for name, cell in cells.items():
        if name not in SHOWN:
            lines.append(f"{one_line(name)}: {_short(cell)}")
    for name, title in SHOWN.items():
        if name in cells:
            lines += ["", f"--- {title} ({name})", _text(cells[name])]
    return "\n".join(lines)


def _row(path: Path, row: int) -> dict[str, Any]:
    from data.frames import cells_of
    from data.samples import read_frame

    frame = read_frame(path)
    if row >= len(frame):
        raise UsageError(f"{path}: no row {row}: rows are 0 to {len(frame) - 1}")
    return {str(name): cells_of(column.iloc[row : row + 1])[0] for name, column in frame.items()}


def _column(name: str, column: "pd.Series") -> dict[str, Any]:
    known = {one: schema.COLUMNS[key] for key in schema.COLUMNS
             for one in (key, *schema.COLUMNS[key].spellings)}  # fmt: skip
    return {
        "name": name,
        "values": _values(column),
        "missing": int(column.isna().sum()),
        "use": known[name].use if name in known else None,
    }


def _values(column: "pd.Series") -> str:
    """The kinds of a column's values, in words."""
    import pandas as pd

    if column.dtype != object and not isinstance(column.dtype, pd.StringDtype):
        return str(column.dtype)
    present = column[~column.isna()]
    return ", ".join(sorted({_word(cell) for cell in present})) or "nothing"


def _word(cell: Any) -> str:
    import numpy as np

    if isinstance(cell, np.ndarray):
        return f"list of {cell.dtype}" if cell.dtype != object else "list"
    if isinstance(cell, list | tuple):
        return "list of int32" if set(map(type, cell)) == {int} else "list"
    return next((word for kind, word in WORDS.items() if isinstance(cell, kind)), "other")


def _tasks(frame: "pd.DataFrame") -> Counter[str]:
    from data.samples import task_of

    tasks: Counter[str] = Counter()
    for name, rows in Counter(map(str, frame.get("dataset", ()))).items():
        try:
            tasks[task_of(name)] += rows
        except ValueError:
            tasks[f"unknown: {name[:40]}"] += rows
    return Counter(dict(sorted(tasks.items())))


def _lengths(frame: "pd.DataFrame", length: str, ids: str) -> dict[str, float] | None:
    """Mean, least and most tokens, by a column of lengths or of token ids; None without both."""
    name = schema.spelling(frame.columns, ids)
    lengths: Sequence[Any]
    if length in frame.columns:
        lengths = frame[length].dropna().tolist()
    elif name is not None:
        lengths = [len(cell) for cell in frame[name] if hasattr(cell, "__len__")]
    else:
        return None
    numbers = [one for one in lengths if isinstance(one, int | float)]
    if not numbers:
        return None
    return {"mean": sum(numbers) / len(numbers), "least": min(numbers), "most": max(numbers)}


def _differences(tasks: Counter[str], prompts: dict[str, float] | None) -> list[str]:
    """What tells the file from the benchmark's."""
    differences = official.task_differences(tasks)
    if prompts and (difference := official.length_difference(prompts["mean"])):
        differences.append(difference)
    return differences


def _verdict(differences: list[str]) -> Iterator[str]:
    if not differences:
        yield "the benchmark's data set, by the rows of each task and the prompts' mean length"
        return
    yield "not the benchmark's data set:"
    yield from (f"  {difference}" for difference in differences)


def _lengths_line(title: str, lengths: dict[str, float]) -> str:
    return (
        f"{title}: {lengths['mean']:.1f} tokens on average, {lengths['least']:g} to"
        f" {lengths['most']:g}"
    )


def _text(cell: Any) -> str:
    return cell if isinstance(cell, str) else _short(cell)


def _short(cell: Any) -> str:
    """A value in one line; of token ids their number and both ends."""
    if hasattr(cell, "tolist"):
        cell = cell.tolist()
    if isinstance(cell, list) and len(cell) > 2 * ENDS:
        first, last = (", ".join(map(quoted, part)) for part in (cell[:ENDS], cell[-ENDS:]))
        return f"{len(cell)}: [{first}, …, {last}]"
    return one_line(cell) if isinstance(cell, str) and len(cell) < 100 else quoted(cell)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file", type=Path, metavar="FILE", help="a .pkl, .pickle, .parquet or .jsonl file"
    )
    parser.add_argument(
        "row", type=whole_number, nargs="?", metavar="ROW", help="show this row, counted from 0"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def main() -> None:
    from data import kinds

    parser = argparse.ArgumentParser(prog="python -m data.inspect", description=__doc__)
    add_options(parser)
    args = parser.parse_args()
    if args.row is None:
        summary = facts(args.file)
        print(json.dumps(summary, indent=2) if args.json else report(summary))
    elif args.json:
        cells = _row(args.file, args.row)
        print(json.dumps({name: kinds.tagged(cell) for name, cell in cells.items()}, indent=2))
    else:
        print(show(args.file, args.row))


if __name__ == "__main__":
    entrypoint.run(main)
