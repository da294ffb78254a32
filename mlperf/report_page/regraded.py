"""The report of a run whose answers are graded later, or again."""

from pathlib import Path

from grading.evaluate import GRADED
from mlperf.run import RECORD, RESULTS


def renew(graded: Path) -> None:
    """Write a run's report again if `graded` is the frame from which it takes the grades."""
    folder = graded.parent
    if graded.stem == f"{RESULTS}{GRADED}" and (folder / RECORD).exists():
        from mlperf.report_page.page import write_or_warn

        write_or_warn(folder)
