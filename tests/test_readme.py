"""Every command of the README and of docs/ is run unchanged, and its results are checked."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import psutil
import pytest

from backends.keeper import mapped_by, named
from tests import forked
from tests.browser import browser
from tests.jobs import GIVEN, ROOT, TINY, figures, grade
from tests.mlperf.compare.opened import check_comparison
from tests.mlperf.report_page.opened import check_report
from tests.timelines import check_timeline

TEST = "./setup.sh --test"
# In the order of reading.
PAGES = ("README.md", "docs/running.md", "docs/compare.md", "docs/grading.md")
MARKS = {"pytorch": (), "vllm": (pytest.mark.vllm,), "sglang": (pytest.mark.sglang,)}
# The folders in which the commands leave LoadGen's runs.
ACCURACY = {"pytorch": "demo/offline", "vllm": "offline", "sglang": "sglang/offline"}
PERFORMANCE = {
    "pytorch": ("demo/offline", "server", "interactive"),
    "vllm": ("server", "attached/interactive"),
    "sglang": ("sglang/server", "sglang/attached/interactive"),
}
# Of these each engine has a run on the same data set, which are compared with one another.
COMPARED = {
    "offline/accuracy": {engine: f"{folder}/accuracy" for engine, folder in ACCURACY.items()},
    "server/performance": {
        engine: f"{folder}/performance"
        for engine, folders in PERFORMANCE.items()
        for folder in folders
        if folder.endswith("server")
    },
}


@dataclass(frozen=True)
class Block:
    """A block of a page's commands, and its result."""

    script: str
    ended: subprocess.CompletedProcess[str]


class Readme:
    """A copy of the tree in which the pages' commands are run, in order, once.

    The copy has what a clone has, and this environment in the place of a new one.
    """

    def __init__(self, copy: Path) -> None:
        self.copy = copy
        self._ran: dict[str, list[Block]] = {}
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        digest = hashlib.sha256()
        for name in sorted(filter(None, listed.stdout.split("\0"))):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
            digest.update(name.encode() + b"\0" + (copy / name).read_bytes())
        self.digest = digest.hexdigest()  # of the whole tree

    def scripts(self) -> dict[str, list[str]]:
        """The blocks of commands for each engine's environment."""
        blocks: dict[str, list[str]] = {}
        for page in PAGES:
            text = (self.copy / page).read_text(encoding="utf-8")
            engine = "pytorch"
            for script in re.findall(r"```bash\n(.*?)```", text, re.S):
                if entered := re.match(r"source setup\.sh --backend (\w+)", script):
                    engine = entered[1]
                blocks.setdefault(engine, []).append(script.replace(f"{TEST}\n", ""))
        return blocks

    def run(self, engine: str) -> list[Block]:
        """Run the blocks of the engine whose environment this is."""
        if engine not in self._ran:
            (self.copy / f".venv-{engine}-cpu").symlink_to(sys.prefix)
            self._ran[engine] = [
                Block(script, self.run_block(script)) for script in self.scripts()[engine]
            ]
        return self._ran[engine]

    def run_block(self, script: str) -> subprocess.CompletedProcess[str]:
        ended = subprocess.run(
            ["bash", "-ec", script],
            cwd=self.copy,
            env={**os.environ, "PATH": f"{sys.prefix}/bin:{os.environ['PATH']}"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        self._remove_what_a_killed_server_leaves()
        return ended

    def _remove_what_a_killed_server_leaves(self) -> None:
        """SGLang leaves a file in shared memory; tests beside this one count such files."""
        servers = [one for one in psutil.process_iter() if self._runs_here(one)]
        shared = mapped_by(servers, named(["sglang_loads_"]))
        psutil.wait_procs(servers, 60)
        for path in shared:
            path.unlink(missing_ok=True)

    def _runs_here(self, process: psutil.Process) -> bool:
        try:
            return process.cwd() == str(self.copy)
        except psutil.Error:  # it is another user's, or has ended
            return False


@pytest.fixture(scope="module")
def readme(tmp_path_factory: pytest.TempPathFactory) -> Readme:
    return Readme(tmp_path_factory.mktemp("readme") / "clone")


def left(readme: Readme, engine: str, folder: str) -> Path:
    """LoadGen's results from the commands of an engine."""
    readme.run(engine)
    return readme.copy / "mlperf_results" / folder


def of_engines(*engines: str) -> pytest.MarkDecorator:
    """A test for each, in its own environment."""
    return pytest.mark.parametrize("engine", [pytest.param(e, marks=MARKS[e]) for e in engines])


def long(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test that runs a page's commands first."""
    for mark in (pytest.mark.slow, pytest.mark.engine, pytest.mark.timeout(1800)):
        test = mark(test)
    return test


def test_the_test_command_is_what_ci_runs() -> None:
    assert f"\n{TEST}\n" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert TEST in (ROOT / ".ci" / "run").read_text()


def test_every_block_is_of_an_engine_that_ci_installs(readme: Readme) -> None:
    scripts = readme.scripts()
    assert list(scripts) == list(ACCURACY)
    assert len(scripts["pytorch"]) >= 6


@long
@of_engines(*ACCURACY)
def test_every_command_succeeds(engine: str, readme: Readme) -> None:
    for block in readme.run(engine):
        assert block.ended.returncode == 0, block.script + block.ended.stdout + block.ended.stderr
        assert "OMP_NUM_THREADS" not in block.ended.stderr  # torchrun's warning


@long
def test_the_demo_ends_with_its_table(readme: Readme) -> None:
    demo = readme.run("pytorch")[0]
    assert "./setup.sh --demo" in demo.script
    table = demo.ended.stdout[demo.ended.stdout.rindex("samples/s") :]
    for word in ("tokens/s", "exact_match", "aime1983", "livecodebench", "mlperf_results/demo"):
        assert word in table, table


@long
@of_engines(*ACCURACY)
def test_the_score_is_the_one_beside_the_weights(engine: str, readme: Readme) -> None:
    kept = json.loads((TINY / "scores.json").read_text(encoding="utf-8"))["exact_match"]
    accuracy = left(readme, engine, ACCURACY[engine]) / "accuracy"
    assert abs(figures((accuracy / "accuracy.txt").read_text())[0] - kept) <= 1.5
    frame = pd.read_pickle(accuracy / "results_evaluated.pkl")
    assert len(frame) == 240
    assert abs(frame.prompt_accuracy.mean() - kept) <= 1.5


@long
@pytest.mark.parametrize(
    ("engine", "folder"),
    [
        pytest.param(engine, folder, marks=MARKS[engine])
        for engine, folders in PERFORMANCE.items()
        for folder in folders
    ],
)
def test_performance_run_in_each_mode(engine: str, folder: str, readme: Readme) -> None:
    results = left(readme, engine, folder) / "performance"
    record = json.loads((results / "run.json").read_text())
    assert record["submittable"] is False
    assert record["figures"]["tokens_per_second"] > 0
    assert ("ttft_p99_ms" in record["figures"]) == ("offline" not in folder)
    frame = pd.read_pickle(results / "results.pkl")
    assert len(frame) >= 20
    assert frame.query_id.is_unique
    assert list(frame.tok_model_output.map(len)) == list(frame.tok_model_output_len)
    assert len(pd.read_parquet(results / "results.parquet")) == len(frame)
    timeline = check_timeline(results)
    assert timeline.seconds["running"].max() > 0
    assert timeline.seconds["cache_use"].dropna().between(0, 1).all()
    engine_ = json.loads((results / "engine.json").read_text())
    if "attached" in folder:
        [(url, server)] = [one for one in engine_.items() if one[0].startswith("http")]
        assert server["max_model_len"] == 4096
        assert set(timeline.requests["endpoint"]) == {url}
    elif engine == "sglang":
        assert engine_["server"]["disable_radix_cache"] is True
        assert "fired up" in (results / "engine.log").read_text()
    elif engine == "vllm":
        assert engine_["arguments"]["enforce_eager"] is True
        assert "KV cache size" in (results / "engine.log").read_text()


@long
@of_engines(*ACCURACY)
def test_the_reports_have_the_figures_of_the_logs(engine: str, readme: Readme) -> None:
    readme.run(engine)
    reports = list((readme.copy / "mlperf_results").rglob("report.html"))
    assert len(reports) > len(PERFORMANCE[engine])
    with browser() as tab:
        for path in reports:
            check_report(tab, path.parent)


@long
@of_engines(*ACCURACY)
def test_real_runs_of_all_engines_are_compared(
    engine: str, readme: Readme, cache: pytest.Cache, tmp_path: Path
) -> None:
    """Each engine's environment leaves its runs to those that are tested after it: the last one
    compares all of them. Runs of another state of the tree are thrown away."""
    folder = cache.mkdir("runs") / readme.digest
    for kept in folder.parent.iterdir():
        if kept != folder:
            shutil.rmtree(kept)
    runs = {test: [folder / test / one for one in ACCURACY] for test in COMPARED}
    for test, folders in COMPARED.items():
        shutil.rmtree(folder / test / engine, ignore_errors=True)
        shutil.copytree(left(readme, engine, folders[engine]), folder / test / engine)
    if missing := [one.name for one in runs["offline/accuracy"] if not one.exists()]:
        pytest.skip(f"no runs of {' and '.join(missing)} by this tree yet: {TEST} makes all")
    with browser() as tab:
        for test, compared in runs.items():
            page = tmp_path / f"{test.replace('/', '-')}.html"
            words = (*compared, "--page", page)
            ended = forked.run("mlperf/compare/__main__.py", *words, timeout=300)
            assert ended.returncode == 0, ended.stderr
            check_comparison(tab, page, compared)


@long
def test_the_points_of_a_sweep_are_runs_that_can_be_compared(readme: Readme) -> None:
    blocks = readme.run("pytorch")
    points = json.loads((readme.copy / "mlperf_sweep" / "sweep.json").read_text())["points"]
    assert [point["values"] for point in points] == [{"target-qps": "2"}, {"target-qps": "4"}]
    [block] = [block for block in blocks if "mlperf.compare" in block.script]
    rows = [line.split(",") for line in block.ended.stdout.splitlines()]
    rates = [float(value) for _, _, name, value, *_ in rows if name == "tokens_per_second"]
    assert sorted(rates) == sorted(point["figures"]["tokens_per_second"] for point in points)
    assert (readme.copy / "compare.html").exists()
    best = json.loads((readme.copy / "mlperf_sweep" / "sweep.json").read_text())["best"]
    if not best:
        pytest.skip("no point of the sweep is within the limits on this machine")
    ended = readme.run_block(best["server"]["command"])
    assert ended.returncode == 0, ended.stderr
    assert (readme.copy / "mlperf_sweep/best/server/performance/run.json").exists()


@long
def test_log_pickle_and_parquet_are_graded_alike(readme: Readme, tmp_path: Path) -> None:
    accuracy = left(readme, "pytorch", "demo/offline") / "accuracy"
    expected = figures((accuracy / "accuracy.txt").read_text())
    out = ["--output-file", str(tmp_path / "evaluated.pkl")]
    log = ["--dataset-file", GIVEN[3], *GIVEN[:2]]
    assert grade("--input-file", str(accuracy / "results.pkl"), *out) == expected
    assert grade("--input-file", str(accuracy / "results.parquet"), *out) == expected
    assert grade("--input-file", str(accuracy / "mlperf_log_accuracy.json"), *log, *out) == expected


@long
def test_a_converted_model_answers_as_the_original(readme: Readme) -> None:
    readme.run("pytorch")
    original = pd.read_pickle(readme.copy / "data" / "pytorch_output.pkl")
    converted = pd.read_pickle(readme.copy / "data" / "converted.pkl")
    assert len(original) == 32
    assert len(converted) == 8
    assert list(converted.tok_model_output) == list(original.tok_model_output.head(8))


@long
def test_accepted_drafts_are_reported_at_the_end(readme: Readme) -> None:
    [block] = [block for block in readme.run("pytorch") if "--speculative" in block.script]
    rates = re.findall(r"drafts: ([\d.]+) tokens of an answer in a step", block.ended.stderr)
    assert len(rates) == 1
    assert float(rates[0]) > 1.2  # the first rows are AIME's, whose digits are hard to guess
    engine = left(readme, "pytorch", "interactive") / "performance" / "engine.json"
    assert json.loads(engine.read_text())["speculative"] is True
