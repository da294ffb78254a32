"""The runs of a sweep, one after another. What is measured already is not run again, and a run that
fails does not end it."""

import logging
import shlex
from collections.abc import Sequence
from pathlib import Path

from data.lock import locked
from data.results import check_writable
from errors import SweepError
from mlperf import launch
from mlperf.sweep import page, table
from mlperf.sweep.plan import Point
from mlperf.sweep.results import Result
from ref_dsinfer.files import write_json

log = logging.getLogger(__name__)

LOCK = ".lock"
RECORD, PAGE = "sweep.json", "sweep.html"


def measure(points: Sequence[Point], output_dir: Path) -> list[Result]:
    """Run the points that have no result yet, and write table and page after each.

    Raises: SweepError naming the points that failed, once all were run; OutputError.
    """
    check_writable(output_dir)
    failures = []
    with locked(output_dir / LOCK):
        results = [Result(point) for point in points]
        _write(results, output_dir)
        for number, point in enumerate(points):
            title = f"{number + 1} of {len(points)}: {point.label}"
            if results[number].measured:
                log.info("%s: done already, in %s", title, point.folder)
                continue
            log.info("%s: %s", title, shlex.join(point.command))
            code = launch.run_to_end(point.command)
            results[number] = Result(point)
            if not results[number].measured:
                reason = results[number].problem or "see its messages above"
                failures.append(f"{point.label} (exit code {code}: {reason})")
                log.error("%s: failed, the sweep goes on", title)
            _write(results, output_dir)
    print(table.text(results, output_dir))
    if failures:
        raise SweepError(
            f"{len(failures)} of {len(points)} points failed: {'; '.join(failures)}: the same"
            " command runs them again"
        )
    return results


def _write(results: Sequence[Result], output_dir: Path) -> None:
    """Write what is known by now."""
    write_json(output_dir / RECORD, table.as_json(results, output_dir))
    page.write(results, output_dir, output_dir / PAGE)
