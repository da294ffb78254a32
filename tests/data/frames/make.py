"""Write the test frames by the installed pandas: python make.py FOLDER

The folders beside this file were made so by pandas 1.5.3 and 2.0.3 (numpy 1.26), 2.2.3, 2.3.3 and
3.1 (numpy 2).
"""

import datetime
import pickle
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

BASE = pd.DataFrame(
    {
        "dataset": ["gpqa", "math500", "aime"],
        "question": ["q", "r", "s"],
        "text_input": ["What?", "Über 中文", "x" * 300],
        "ground_truth": ["042", 7, 3.5],
        "tok_input": [[1, 2], list(range(70)), []],
        "tok_input_len": [2, 70, 0],
        "score": [0.5, None, 1.0],
        "flag": [True, False, True],
    },
    index=[5, 9, 2],
)


def frames() -> Iterator[tuple[str, pd.DataFrame, int]]:
    """Name, frame and protocol."""
    base, newest = BASE, pickle.HIGHEST_PROTOCOL
    yield from ((f"protocol{protocol}", base, protocol) for protocol in (2, 3, 4, 5))
    yield "objects", base.astype(object), newest
    yield "fresh", base.reset_index(drop=True), newest
    yield "filtered", base[base.tok_input_len > 0], newest
    yield "labels", base.set_index("question", drop=False), newest
    yield "numbered", pd.DataFrame([[1, "a"], [2, "b"]]), newest
    yield "empty", base.iloc[:0], newest
    yield "string", base.astype({"dataset": "string", "question": "string"}), newest
    yield "category", base.assign(dataset=base.dataset.astype("category")), newest
    days = pd.to_datetime(["2025-01-02", "NaT", "2025-01-03"])
    stamps = pd.Series([pd.Timestamp("2025-01-02")] * 3, base.index, dtype=object)
    day = [datetime.date(2025, 1, 2)] * 3
    yield "dates", base.assign(made=days, day=day, stamp=stamps), newest
    yield "zone", base.assign(made=days.tz_localize("UTC")), newest
    nullable = {
        "a": pd.array([1, None, 3], "Int64"),
        "b": pd.array([True, None, False], "boolean"),
        "c": pd.array([1.5, None, 2], "Float64"),
        "d": pd.array([1, 2, 3], "UInt8"),
    }
    yield "nullable", base.assign(**nullable), newest
    odd: dict[str, Any] = {
        "decimals": [Decimal("1.50"), None, Decimal("2")],
        "arrays": [np.array([1, 2]), np.array([1.5]), None],
        "scalars": pd.Series([np.int64(1), np.float32(2), np.str_("é")], base.index, dtype=object),
        "dicts": [{"a": 1, "b": [1, {"c": None}]}, {}, None],
        "missing": pd.Series([pd.NA, pd.NaT, None], base.index, dtype=object),
        "tuples": [(1, "a"), (), (2,)],
        "small": np.array([1, 2, 3], np.int8),
        "half": np.array([1, 2, 3], np.float32),
        "bytes": [b"x", b"", b"y"],
        "large": [2**70, -1, 0],
        "spans": pd.to_timedelta([1, 2, 3], "s"),
    }
    yield "odd", base.assign(**odd), newest


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, frame, protocol in frames():
        with (folder / f"{name}.pkl").open("wb") as file:
            pickle.dump(frame, file, protocol)


if __name__ == "__main__":
    main()
