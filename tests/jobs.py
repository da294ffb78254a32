"""Shared by the tests of the main job on every engine."""

import json
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

import psutil

from backends.keeper import mapped_by, named
from data.journal import read_journal
from grading import accuracy_log
from mlperf import compliance, report
from tests import forked
from tests.timelines import check_timeline

ROOT = Path(__file__).parent.parent
TINY = ROOT / "data" / "tiny"
GIVEN = ["--model", str(TINY / "model"), "--input-file", str(TINY / "final_output.pkl")]
FIGURES = re.compile(r"'exact_match':\s([\d.]+), 'tokens_per_sample':\s([\d.]+)")
SHARED = ["psm_", "sem.", "sgl"]  # name prefixes of engines' files in shared memory
END_S = 45.0  # for everything to be gone, on a busy machine


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


def figures(printed: str) -> tuple[float, float]:
    """exact_match and tokens_per_sample, read as the official checker reads them."""
    match = FIGURES.search(printed)
    assert match, printed
    return float(match[1]), float(match[2])


def grade(*options: str) -> tuple[float, float]:
    """The output of eval_accuracy.py for a file."""
    problems = ["--livecodebench-file", str(TINY / "livecodebench.jsonl")]
    ended = forked.run("eval_accuracy.py", *options, *problems, timeout=300)
    assert ended.returncode == 0, ended.stderr
    return figures(ended.stdout)


def without_mtp(folder: Path) -> Path:
    """The tiny model, whose configuration then names no MTP layer."""
    model = Path(shutil.copytree(TINY / "model", folder / "without-mtp"))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"num_nextn_predict_layers": 0}))
    return model


def journal(folder: Path) -> Path:
    return folder / "offline" / "accuracy" / "completions.journal"


def accuracy_run(folder: Path) -> list[str]:
    """The beginning of an accuracy run's command, with results in `folder`."""
    words = ["run_mlperf.py", "--max-running", "2", "--accuracy", *GIVEN]
    return [*words, "--output-dir", str(folder)]


def start_answering(
    folder: Path, *options: str, answers: int
) -> tuple[subprocess.Popen[str], list[psutil.Process]]:
    """Starts a run, and returns it with its descendants once it has so many answers on disk."""
    run = subprocess.Popen(
        [sys.executable, *accuracy_run(folder), *options],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    until = time.monotonic() + 600
    while not (journal(folder).exists() and len(read_journal(journal(folder))) >= answers):
        assert run.poll() is None, run.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.1)
    return run, psutil.Process(run.pid).children(recursive=True)


def vllm_core(processes: list[psutil.Process]) -> psutil.Process:
    """Of vLLM's processes, the one that holds the model."""
    return next(one for one in processes if "EngineCore" in one.name())


def sglang_scheduler(processes: list[psutil.Process]) -> psutil.Process:
    """Of SGLang's processes, the one that holds the model."""
    pids = {one.pid for one in processes}
    of_the_server = [one for one in processes if one.ppid() in pids]
    return max(of_the_server, key=lambda one: one.memory_info().rss)


def shared_by(processes: Iterable[psutil.Process]) -> set[Path]:
    """Files in shared memory, of kinds that engines make, which these processes have mapped."""
    return mapped_by(processes, named(SHARED))


def orphans() -> set[Path]:
    """Files in shared memory, of kinds that engines make, which no process has mapped."""
    return named(SHARED) - shared_by(psutil.process_iter())


def assert_gone(processes: Iterable[psutil.Process], shared: set[Path]) -> None:
    """Soon none of these processes runs, and none of these files is left."""

    def alive() -> list[psutil.Process]:
        # a process whose parent was killed may stay a zombie
        return [
            one for one in processes if one.is_running() and one.status() != psutil.STATUS_ZOMBIE
        ]

    assert_soon_empty(alive)
    assert_soon_empty(lambda: {path for path in shared if path.exists()})


def assert_soon_empty(rest: Callable[[], Collection[object]]) -> None:
    """Within END_S nothing is left; what is left then is shown."""
    until = time.monotonic() + END_S
    while (left := rest()) and time.monotonic() < until:
        time.sleep(0.2)
    assert not left


def check_logs(folder: Path, stop_ids: Sequence[int]) -> None:
    """Hold a compliance run's logs to the answers, and its counts of tokens to LoadGen's own."""
    entries = accuracy_log.entries(folder / compliance.ACCURACY_LOG)
    logged = [
        (entry["qsl_idx"], tuple(accuracy_log.int32_values(entry["data"], "data").tolist()))
        for entry in entries
    ]
    timeline = check_timeline(folder, folder / compliance.LOGS)
    assert timeline.seconds["running"].notna().any()
    journal = read_journal(folder / "completions.journal")
    answers = [(index, tuple(one.token_ids) or tuple(stop_ids[:1])) for index, one in journal]
    assert sorted(logged) == sorted(answers)
    values = report.read_detail(folder / compliance.LOGS / report.DETAIL_LOG).values
    rate, tokens = (
        values[f"result_completed_{name}"] for name in ("samples_per_sec", "tokens_per_second")
    )
    # LoadGen divides one sample less, but all tokens, by the time until the last was there
    assert round(tokens / rate * (len(logged) - 1)) == sum(len(ids) for _, ids in logged)


def check_compliance(backend: str, url: str, folder: Path, *options: str) -> None:
    """Run TEST06 on a server, in LoadGen's Server scenario."""
    ended = forked.run(
        *("run_mlperf.py", "--backend", backend, "--endpoint", url, *GIVEN, *options),
        *("--mode", "server", "--target-qps", "8", "--compliance", "--output-dir", str(folder)),
        timeout=280,
    )
    assert ended.returncode == 0, ended.stderr
    check_logs(folder / "server" / "compliance" / compliance.NAME, [1])
