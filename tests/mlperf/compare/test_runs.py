"""Comparisons of runs as users make them: of real runs, by the command itself."""

import csv
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import forked
from tests.jobs import GIVEN

COMMAND = "mlperf/compare/__main__.py"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Runs of the echo engine: whole, short answers, failed, and the failed one resumed."""
    folder = tmp_path_factory.mktemp("runs")
    base = ("--backend", "echo", *GIVEN, "--accuracy", "--num-samples", "12")
    for name, code, options in (
        ("whole", 0, ()),
        ("short", 0, ("--engine-arg", "answer_tokens=20")),
        ("failed", 12, ("--engine-arg", "fail_at=4")),
        ("resumed", 0, ("--resume",)),
    ):
        if name == "resumed":
            shutil.copytree(folder / "failed", folder / name)
        ended = forked.run("run_mlperf.py", *base, *options, "--output-dir", folder / name)
        assert ended.returncode == code, ended.stderr
    return lambda name: folder / name / "offline" / "accuracy"


@pytest.mark.slow
def test_real_runs_are_compared(runs: Callable[[str], Path], tmp_path: Path) -> None:
    names = ("whole", "short", "failed", "resumed")
    folders = [runs(name) for name in names]
    ended = forked.run(COMMAND, *folders, "--json", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    content = json.loads(ended.stdout)
    records = {
        name: json.loads((runs(name) / "run.json").read_text())
        for name in ("whole", "short", "resumed")
    }
    whole, short, failed, resumed = content["runs"]
    assert whole["figures"] == records["whole"]["figures"]
    assert short["figures"] == records["short"]["figures"]
    assert failed["figures"] == {}
    assert any("told to fail at request 4" in line for line in failed["warnings"])
    assert any("answered by an earlier run" in line for line in resumed["warnings"])
    against_short, against_failed, against_resumed = content["pairs"]
    assert against_resumed["samples"]["alike"] == 12
    assert against_failed["samples_refused"] == "no answers of C"
    samples = against_short["samples"]
    cut = [one for one in samples["differences"] if one["tokens"][0] > 20]
    assert cut == samples["differences"] != []
    assert {one["first_differing_token"] for one in cut} == {20}
    assert samples["other_finish"] == 0
    rows = [row["engine.options.answer_tokens"] for row in [content["differences"]]]
    assert rows == [[None, "20", None, None]]

    graded = [folder / "results_evaluated.pkl" for folder in folders[:2]]
    theirs = forked.run("eval_accuracy.py", "--input-file", graded[0], "--compare", graded[1])
    assert theirs.returncode == 0, theirs.stderr
    text = forked.run(COMMAND, *folders[:2], cwd=tmp_path)
    assert f"grades: {theirs.stdout.splitlines()[0]}" in text.stdout
    assert theirs.stdout.splitlines()[1] in text.stdout

    table = forked.run(COMMAND, *folders, "--csv", "--page", tmp_path / "page.html", cwd=tmp_path)
    for row in csv.DictReader(io.StringIO(table.stdout)):
        name = names["ABCD".index(row["run"])]
        value = records.get(name, {"figures": {}})["figures"].get(row["figure"])
        assert row["value"] == ("" if value is None else str(value))
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")


def test_one_folder_is_too_few() -> None:
    ended = forked.run(COMMAND, "x")
    assert ended.returncode == 2
    assert "error: 1 result folders: pass 2 to 26" in ended.stderr
