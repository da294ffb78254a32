"""Sweeps over two engines: stopped half-way, resumed, one point failing, and the best one run."""

import argparse
import json
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from errors import UsageError
from mlperf.sweep.__main__ import add_options, run
from tests import forked
from tests.browser import browser
from tests.effort import THOROUGH
from tests.jobs import GIVEN, ROOT

COMMAND = "mlperf/sweep/__main__.py"
TABLE = f"""
options = {json.dumps([*GIVEN, "--mode", "server", "--num-samples", "20"])}
vary.target-qps = [200, 10]
[engines.fast]
backend = "echo"
[engines.broken]
backend = "echo"
options = ["--engine-arg", "fail_at=3"]
vary.target-qps = [200]
"""
REAL = f"""
options = {json.dumps([*GIVEN, "--mode", "server", "--num-samples", "10"])}
vary.target-qps = [0.5, 1, 2]
[engines.pytorch]
[engines.vllm]
options = ["--eager"]
"""
POINTS = "[...document.querySelectorAll('svg .mark')].map((mark) => mark.textContent)"


def stop_half_way(options: tuple[str, ...], out: Path, begun: int, timeout: float) -> list[Path]:
    """Start a sweep and end it by SIGTERM once so many of its points have begun.

    Returns the folders of the points that were finished by then.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "mlperf.sweep", *options],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until = time.monotonic() + timeout
    while len(states := list(out.glob("points/*/state.json"))) < begun:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 143, err
    return sorted(path.parent for path in states if (path.parent / "run.json").exists())


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_sweep_goes_on_where_it_was_and_past_a_point_that_fails(tmp_path: Path) -> None:
    config, out = tmp_path / "sweep.toml", tmp_path / "out"
    config.write_text(TABLE)
    options = ("--config", str(config), "--output-dir", str(out))
    kept = stop_half_way(options, out, 2, 120)
    before = [(path / "run.json").stat().st_mtime_ns for path in kept]
    assert len(kept) == 1
    halfway = json.loads((out / "sweep.json").read_text())
    assert [point["verdict"] for point in halfway["points"]] == ["within", "not run", "not run"]
    assert "2 of 3 points have no result" in (out / "sweep.html").read_text()

    ended = forked.run(COMMAND, *options, timeout=300)
    assert ended.returncode == 17, ended.stderr
    assert ended.stderr.count("done already") == 1
    assert [(path / "run.json").stat().st_mtime_ns for path in kept] == before
    failure = "broken target-qps=200 (exit code 12: echo: told to fail at request 3)"
    assert f"error: 1 of 3 points failed: {failure}" in ended.stderr.splitlines()[-1]
    content = json.loads((out / "sweep.json").read_text())
    points = {point["label"]: point for point in content["points"]}
    assert [point["verdict"] for point in points.values()] == ["within", "within", "failed"]
    for point in points.values():
        if point["figures"]:
            record = json.loads(Path(point["folder"], "run.json").read_text())
            assert point["figures"] == record["figures"]
    html = (out / "sweep.html").read_text()
    assert "1 of 3 points have no result" in html
    for word in ("Pareto front", "Server: 2000 ms", "Interactive: 15 ms", "told to fail at"):
        assert word in html

    # the best point, as it is printed
    chosen = content["best"]["server"]
    most = max(point["figures"].get("tokens_per_second", 0) for point in points.values())
    assert points[chosen["label"]]["figures"]["tokens_per_second"] == most
    [printed] = re.findall(rf"^Server: {chosen['label']}, .*\n  (.*)$", ended.stdout, re.M)
    assert printed == chosen["command"]
    _, script, *words = shlex.split(printed)
    assert forked.run(script, *words).returncode == 0
    assert (out / "best" / "server" / "performance" / "run.json").exists()


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not THOROUGH, reason="takes many minutes: THOROUGH=1 runs it")
def test_the_best_of_two_engines_at_three_rates_runs_as_printed(tmp_path: Path) -> None:
    """Each engine in the environment that setup.sh has made for it beside this tree."""
    if missing := [name for name in ("pytorch", "vllm") if not [*ROOT.glob(f".venv-{name}-*")]]:
        pytest.skip(f"no environment of {missing[0]}: ./setup.sh --backend {missing[0]}")
    config, out = tmp_path / "sweep.toml", tmp_path / "out"
    config.write_text(REAL)
    options = ("--config", str(config), "--output-dir", str(out))
    kept = stop_half_way(options, out, 4, 1200)
    assert len(kept) == 3
    before = [(path / "run.json").stat().st_mtime_ns for path in kept]
    ended = forked.run(COMMAND, *options, timeout=1800)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("done already") == 3
    assert [(path / "run.json").stat().st_mtime_ns for path in kept] == before

    content = json.loads((out / "sweep.json").read_text())
    assert [point["label"] for point in content["points"]] == [
        f"{engine} target-qps={rate}" for engine in ("pytorch", "vllm") for rate in (0.5, 1, 2)
    ]
    with browser() as tab:
        tab.open(f"file://{out}/sweep.html")
        assert tab.complaints == []
        assert len(tab.value(POINTS)) == 2 * len(content["points"])  # in two charts
    if not content["best"]:
        pytest.skip("no point is within the limits on this machine")
    printed = content["best"]["server"]["command"]
    assert printed in ended.stdout
    best = subprocess.run(["bash", "-c", printed], capture_output=True, text=True, check=False)
    assert best.returncode == 0, best.stderr
    assert (out / "best" / "server" / "performance" / "run.json").exists()


def start(*words: str) -> None:
    parser = argparse.ArgumentParser()
    add_options(parser)
    run(parser.parse_args(words))


def test_options_that_contradict_one_another_are_refused() -> None:
    with pytest.raises(UsageError, match="--config: leave out --engines"):
        start("--config", "sweep.toml", "--engines", "echo")
    with pytest.raises(UsageError, match="--vary target-qps: given twice"):
        start("--engines", "echo", "--vary", "target-qps=2", "--vary", "target-qps=4")


def test_a_dry_run_prints_the_command_of_each_point(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--engines", "echo", "--vary", "target-qps=2,4", "--dry-run"]
    start(*words, "--output-dir", str(tmp_path / "out"), "--", *GIVEN)
    lines = capsys.readouterr().out.splitlines()
    assert [shlex.split(line)[-4:-1] for line in lines] == [
        ["--target-qps", rate, "--log-dir"] for rate in ("2", "4")
    ]
    assert not (tmp_path / "out").exists()
