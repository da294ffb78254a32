"""What a report of the benchmark's size costs: python benchmarks/report_page.py"""

import base64
import gzip
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.figures import Figure

WRITING_S, OPENING_S, MEGABYTES = 20.0, 2.0, 30.0
TURNS = 3  # of which the fastest counts


def figures(folder: Path) -> list[Figure]:
    """Writing a report in CPU seconds, its size, and opening it in Chromium.

    The peer of writing is gzip and base64 of the same texts at once; that of size is these texts;
    that of opening is the report of the same run without its samples.
    """
    import pandas as pd

    from mlperf.page.blocks import LEVEL
    from mlperf.report_page.page import write_report
    from tests.browser import browser
    from tests.mlperf.report_page.full_size import full_size

    full_size(folder)
    frame = pd.read_parquet(folder / "results_evaluated.parquet")
    texts = "".join(frame["question"] + frame["model_output"]).encode()
    start = time.process_time()
    base64.b64encode(gzip.compress(texts, LEVEL))
    packing = time.process_time() - start
    start = time.process_time()
    report = write_report(folder)
    writing = time.process_time() - start
    size = report.stat().st_size / 1e6
    whole = report.rename(folder / "whole.html")
    (folder / "results_evaluated.parquet").unlink()
    small = write_report(folder)
    with browser() as tab:
        opening = {}
        for path, ready in (
            (small, "true"),
            (whole, "/samples$/.test(find('count').textContent)"),
        ):
            seconds = []
            for _ in range(TURNS):
                start = time.perf_counter()
                tab.open(f"file://{path}").until(ready)
                seconds.append(time.perf_counter() - start)
            opening[path] = min(seconds)
        start = time.perf_counter()
        tab.value("find('search').value = 'not in any text'; update()")
        searching = time.perf_counter() - start
    return [
        Figure("writing a report of 4388 answers, CPU", writing, "s", WRITING_S, packing),
        Figure("its size", size, "MB", MEGABYTES, len(texts) / 1e6),
        Figure(
            "opening it, list of samples included", opening[whole], "s", OPENING_S, opening[small]
        ),
        Figure("searching all of its texts", searching, "s"),
    ]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        print(*figures(Path(name)), sep="\n")
