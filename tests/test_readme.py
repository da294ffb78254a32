"""Every command of the README, run as it stands."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Block

ROOT = Path(__file__).parent.parent
TEST = "./setup.sh --test"


def test_the_test_command_is_what_ci_runs() -> None:
    assert f"\n{TEST}\n" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert TEST in (ROOT / ".ci" / "run").read_text()


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.timeout(900)
def test_every_command_succeeds(readme: tuple[Path, list["Block"]]) -> None:
    _, blocks = readme
    assert len(blocks) >= 6
    for block in blocks:
        assert block.ended.returncode == 0, block.script + block.ended.stdout + block.ended.stderr


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.timeout(900)
def test_the_demo_ends_with_its_table(readme: tuple[Path, list["Block"]]) -> None:
    demo = readme[1][0]
    assert "./setup.sh --demo" in demo.script
    table = demo.ended.stdout[demo.ended.stdout.rindex("samples/s") :]
    for word in ("tokens/s", "exact_match", "aime1983", "livecodebench", "mlperf_results/demo"):
        assert word in table, table
