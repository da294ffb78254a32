"""Every command of the README, run as it stands, in order, in a copy of the tree."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
OURSELVES = "./setup.sh --test\n"  # runs these tests


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree as a clone has it, and this environment in the place of a new one."""
    target = tmp_path_factory.mktemp("readme") / "clone"
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target / name)
    (target / ".venv-pytorch-cpu").symlink_to(sys.prefix)
    return target


def test_the_test_command_is_what_ci_runs() -> None:
    assert OURSELVES in BLOCKS[0]
    assert OURSELVES.strip() in (ROOT / ".ci" / "run").read_text()


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.timeout(900)
@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_block(number: int, copy: Path) -> None:
    script = BLOCKS[number].replace(OURSELVES, "")
    ended = subprocess.run(
        ["bash", "-ec", script],
        cwd=copy,
        env={**os.environ, "PATH": f"{sys.prefix}/bin:{os.environ['PATH']}"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, script + ended.stdout + ended.stderr
    if "--demo" in script:
        for word in ("samples/s", "tokens/s", "exact_match", "aime", "livecodebench", "files"):
            assert word in ended.stdout, ended.stdout
