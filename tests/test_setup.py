"""setup.sh: options, errors, and that sourcing it changes nothing else in the shell."""

import os
import site
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from venv import create

import pytest

from backends import registry

ROOT = Path(__file__).parent.parent
SETUP = str(ROOT / "setup.sh")


def setup(*options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SETUP, *options],
        env={**os.environ, "MLPERF_BACKEND": "pytorch", **variables},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def stub_venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment whose stamps say that all is installed, so that nothing is downloaded."""
    venv = tmp_path_factory.mktemp("setup") / "an environment"
    create(venv)
    packages = venv / "lib" / f"python3.{sys.version_info.minor}" / "site-packages"
    (packages / "pip.pth").write_text(f"{site.getsitepackages()[0]}\n")  # sooner than installing it
    files = [ROOT / "requirements" / name for name in ("base.txt", "pytorch-cpu.txt")]
    copied = (ROOT / "requirements" / "torchrun-nodes").rglob("*")
    files += sorted(path for path in copied if path.is_file() and "__pycache__" not in path.parts)
    wanted = subprocess.run(
        ["cksum"], input=b"".join(f.read_bytes() for f in files), capture_output=True, check=True
    )
    (venv / ".complete-run").write_bytes(wanted.stdout)
    return venv


def test_help_names_every_option() -> None:
    shown = setup("--help")
    assert shown.returncode == 0
    for option in ("--backend", "--device", "--venv", "--index", "--force", "--demo", "--test"):
        assert option in shown.stdout + shown.stderr
    for option in ("--offline", "--verify", "--fast"):
        assert option in shown.stdout + shown.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--bogus"], "unknown option --bogus"),
        (["--backend"], "--backend needs a value"),
        (["--backend", "nosuch", "--device", "cpu"], "pytorch-cpu"),
        (["--device", "tpu"], "no requirements for --backend pytorch --device tpu"),
        (["--python", "/bin/false", "--venv", "/nonexistent"], "not a Python 3.11"),
        (["--test", "--venv", "/nonexistent"], "requires --backend NAME"),
        (["--fast"], "--fast requires --test"),
        (["--offline", "/nonexistent"], "--offline /nonexistent: no wheels in it"),
    ],
)
def test_bad_options_end_in_one_line(options: list[str], message: str) -> None:
    ended = setup(*options)
    assert ended.returncode == 2
    assert message in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1


def test_a_complete_environment_is_left_alone(stub_venv: Path) -> None:
    ended = setup("--device", "cpu", "--venv", str(stub_venv))
    assert ended.returncode == 0, ended.stderr
    assert f"source {stub_venv}/bin/activate" in ended.stdout
    assert "installing" not in ended.stderr


@pytest.mark.slow
def test_an_interrupted_environment_is_made_anew(tmp_path: Path) -> None:
    venv = tmp_path / "half"
    venv.mkdir()
    (venv / ".complete-run").touch()  # a stamp, but no interpreter
    ended = setup("--device", "cpu", "--venv", str(venv), PIP_NO_INDEX="1", PIP_FIND_LINKS="")
    assert f"creating {venv}" in ended.stderr
    assert "installing" in ended.stderr
    assert ended.returncode != 0  # there is nowhere to install from, ...
    assert not (venv / ".complete-run").exists()  # ... so the next run tries again


def test_sourcing_activates_and_leaves_the_shell_as_it_was(stub_venv: Path) -> None:
    script = (
        f"cd /; before=$(set +o; compgen -v | grep -c .); source '{SETUP}' --device cpu "
        f"--venv '{stub_venv}' || exit 1; [ \"$VIRTUAL_ENV\" = '{stub_venv}' ] || exit 2; "
        'false; [ "$PWD" = / ] || exit 3; [ -z "${backend+x}${device+x}${venv+x}" ] || exit 4; '
        f"source '{SETUP}' --bogus; [ $? = 2 ] || exit 5; echo survived"
    )
    ended = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "survived" in ended.stdout


REQUIREMENTS = sorted((ROOT / "requirements").glob("*.txt"))


@pytest.mark.parametrize("path", REQUIREMENTS, ids=lambda path: path.name)
def test_every_requirement_is_one_version_and_agrees_with_the_base(path: Path) -> None:
    base = dict(pins(ROOT / "requirements" / "base.txt"))
    for name, version in pins(path):
        assert base.get(name, version) == version, name


def pins(path: Path) -> Iterator[tuple[str, str]]:
    """Names and versions; a folder of this tree has none."""
    for line in path.read_text().splitlines():
        line = line.partition("#")[0].strip()
        if line == "-r base.txt" or not line:
            continue
        if line.startswith("./"):
            assert (ROOT / line / "pyproject.toml").is_file()
            continue
        name, equals, version = line.partition("==")
        assert equals, f"{line}: not pinned"
        yield name, version


def test_every_engine_offered_has_an_environment_for_each_of_its_devices() -> None:
    for name in registry.names():
        for device in ("cpu", "cuda"):
            assert (ROOT / "requirements" / f"{name}-{device}.txt").is_file()
