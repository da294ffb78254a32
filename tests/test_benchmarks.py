"""Benchmarks run on small inputs: that they measure is tested, not what.

Those of vLLM and SGLang are left out: their engines alone take minutes to start again and again.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.fetch import fetching
from tests import forked

ROOT = Path(__file__).parent.parent
FEW = ("--requests", "5", "--prompt-tokens", "3", "20", "--answer-tokens", "2", "9")

pytestmark = pytest.mark.slow


def run(name: str, *options: str) -> str:
    ended = forked.run(f"benchmarks/{name}.py", *options, timeout=280)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def test_the_engine_and_its_peers_do_the_same_work() -> None:
    answers = []
    for part in ("ours", "static", "transformers"):
        output = run("engine", "--dtype", "float32", "--part", part, *FEW)
        _, token_ids = json.loads(output.splitlines()[-1].removeprefix("found: "))
        answers.append(token_ids)
    assert len(answers[0]) == 5
    assert answers[1] == answers[2] == answers[0]


def test_engine_prints_its_ratio() -> None:
    assert "ref_dsinfer" in run("engine", *FEW).splitlines()[-1]


@pytest.mark.parametrize(
    ("name", "options", "figures"),
    [
        (
            "client",
            ("--streams", "10", "--tokens", "20", "--repeat", "1"),
            r"our client +[1-9][\d,]* +1\.00 +\d+\.\d\d\n",
        ),
        (
            "convert",
            ("--gigabytes", "0.05", "--model-parallel", "2"),
            r"checkpoint [1-9]\.\d\d GB, largest rank file 0\.\d\d GB\npeak memory .* 0\.\d\dx",
        ),
        (
            "grading",
            ("--rows", "40", "--programs", "4", "--tests", "2", "--starts", "3"),
            r"4 programs, 2 tests each +\d+\.\d s(.*\n){2} +exact_match +100\.0",
        ),
        (
            "sut",
            ("--samples", "20", "--tokens", "5", "--repeat", "1"),
            r"inside issue +\d+\.\d us/sample +100\.0% .*\nsmallest SUT +.*\n"
            r"our SUT +\d+\.\d us/sample (.*\n){6}inside issue( +\d+\.\d){4}\n"
            r"smallest SUT( +\d+\.\d){4}\nour SUT( +\d+\.\d){4}\n"
            r"(.*\n)+our SUT +\d+ tokens/s\n",
        ),
        (
            "sut",
            ("--memory", "--samples", "300", "--tokens", "5"),  # more than run at a time
            r"peak memory, 300 samples of 5 tokens\nLoadGen, SUT +\d+ MB\nwith results +\d+ MB\n",
        ),
        (
            "data",
            ("loading=20", "problem=0.002"),
            r"(loading \.(pkl|parquet|jsonl) of \d+ MB +\d+\.\d+ s CPU  peer .*\npeak .*\n){3}"
            r"building .*\none problem, all tests, of a store of 0\.00 GB +\d+\.\d+ ms",
        ),
        (
            "host_time",
            ("--sequences", "8", "--steps", "8"),
            r"8 sequences.*\n(.* \d+\.\d+ ms of CPU a step +\d+\.\dx\n){3}",
        ),
        ("roofline", (), r"sequences that fit: \d+\n(.*\n)+ +1024 +256 +680( .*){4} 9783 "),
    ],
)
def test_it_prints_its_figures(name: str, options: tuple[str, ...], figures: str) -> None:
    printed = run(name, *options)
    assert re.search(figures, printed), printed


def test_fetches_are_beside_curl(tmp_path: Path) -> None:
    figures = fetching(tmp_path, megabytes=2)
    assert len(figures) == 10
    assert all(figure.value > 0 and figure.peer for figure in figures)
    assert len(list((tmp_path / "to").iterdir())) == 4


def test_every_kernel_that_is_measured_can_be_called() -> None:
    printed = subprocess.run(
        [sys.executable, "benchmarks/kernels.py", "--check"],
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1"},  # which is read as Triton is imported
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert len(printed) == 14
    assert all(line.endswith(": runs") for line in printed)
