"""Every command of the README, run as it stands."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Readme

ROOT = Path(__file__).parent.parent
TEST = "./setup.sh --test"


def test_the_test_command_is_what_ci_runs() -> None:
    assert f"\n{TEST}\n" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert TEST in (ROOT / ".ci" / "run").read_text()


def test_every_block_is_of_an_engine_that_ci_installs(readme: "Readme") -> None:
    scripts = readme.scripts()
    assert list(scripts) == ["pytorch", "vllm", "sglang"]
    assert len(scripts["pytorch"]) >= 6


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "engine",
    [
        "pytorch",
        pytest.param("vllm", marks=pytest.mark.vllm),
        pytest.param("sglang", marks=pytest.mark.sglang),
    ],
)
def test_every_command_succeeds(engine: str, readme: "Readme") -> None:
    for block in readme.run(engine):
        assert block.ended.returncode == 0, block.script + block.ended.stdout + block.ended.stderr


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.timeout(900)
def test_the_demo_ends_with_its_table(readme: "Readme") -> None:
    demo = readme.run("pytorch")[0]
    assert "./setup.sh --demo" in demo.script
    table = demo.ended.stdout[demo.ended.stdout.rindex("samples/s") :]
    for word in ("tokens/s", "exact_match", "aime1983", "livecodebench", "mlperf_results/demo"):
        assert word in table, table
