"""setup.sh in small trees whose requirements are tiny wheels: real pip and uv, no network."""

import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from venv import create

import psutil
import pytest

ROOT = Path(__file__).parent.parent
ENGINES = ("pytorch", "vllm", "sglang")

# How torchrun looks for rendezvous handlers.
FINDS_OURS = """
from importlib.metadata import entry_points
(found,) = entry_points(group="torchrun.handlers")
print(found.value)
"""
# Which tool has installed a package.
INSTALLER = """
from importlib.metadata import distribution
print(distribution("sglang").read_text("INSTALLER"))
"""
METADATA = "Metadata-Version: 2.1\nName: {name}\nVersion: 1\n"
WHEEL = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
# Python, but its environments get a copy of an installed pip: installing that takes seconds.
SEEDED = """#!/bin/sh
[ "$1 $2" = "-m venv" ] || exec "{python}" "$@"
"{python}" -m venv --without-pip "$3" && cp -al "{packages}/." "$3"/lib/python3*/site-packages
"""
# A build backend, which is what the folder of shims asks for.
BUILDER = f"""
import zipfile
def build_wheel(folder, config_settings=None, metadata_directory=None):
    with zipfile.ZipFile(f"{{folder}}/shims-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("shims.py", "")
        wheel.writestr("shims-1.dist-info/METADATA", {METADATA.format(name="shims")!r})
        wheel.writestr("shims-1.dist-info/WHEEL", {WHEEL!r})
        wheel.writestr("shims-1.dist-info/RECORD", "")
    return "shims-1-py3-none-any.whl"
"""


def make_wheel(folder: Path, name: str, text: str = "", needs: str = "") -> None:
    """A wheel of one module."""
    info = f"{name}-1.dist-info"
    metadata = METADATA.format(name=name) + (f"Requires-Dist: {needs}\n" if needs else "")
    with zipfile.ZipFile(folder / f"{name}-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", text)
        wheel.writestr(f"{info}/METADATA", metadata)
        wheel.writestr(f"{info}/WHEEL", WHEEL)
        wheel.writestr(f"{info}/RECORD", "")


class Tree:
    """A tree with setup.sh and small requirements, beside a folder of wheels."""

    def __init__(self, folder: Path, python: Path) -> None:
        self.python = python
        self.root = folder / "a tree"
        self.wheels = folder / "some wheels"
        shims = self.root / "requirements" / "shims"
        shims.mkdir(parents=True)
        self.wheels.mkdir()
        shutil.copy(ROOT / "setup.sh", self.root)
        shutil.copytree(ROOT / "requirements" / "torchrun-nodes", shims.parent / "torchrun-nodes")
        shutil.copy(ROOT / "requirements" / "uv_install.py", shims.parent)
        (shims.parent / "uv.txt").write_text("uv==1\n")
        for name in ("base", *ENGINES):
            make_wheel(self.wheels, name, needs="absent" if name == "vllm" else "")
        make_wheel(self.wheels, "builder", BUILDER)
        (shims / "pyproject.toml").write_text(
            '[build-system]\nrequires = ["builder==1"]\nbuild-backend = "builder"\n'
            '[project]\nname = "shims"\nversion = "1"\n'
        )
        for name, text in {
            "base": "base==1\n",
            "pytorch-cpu": "-r base.txt\npytorch==1\n",
            "vllm-cpu": "-r base.txt\n",
            "vllm-cpu.nodeps": "vllm==1\n",
            "sglang-cpu": "-r base.txt\nsglang==1\n",
            "sglang-cpu.nodeps": "./requirements/shims\n",
        }.items():
            (shims.parent / f"{name}.txt").write_text(text)
        # nothing of this machine: neither its package indexes nor its uv
        self.variables = {
            "PATH": "/usr/bin:/bin",
            "HOME": str(folder),
            "PIP_CONFIG_FILE": "/dev/null",
        }

    def command(self, *options: str, offline: bool = True) -> list[str]:
        more = ["--offline", str(self.wheels)] if offline else []
        return [str(self.root / "setup.sh"), "--python", str(self.python), *more, *options]

    def setup(
        self, *options: str, offline: bool = True, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*options, offline=offline),
            env=self.variables | variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    def tells(self, venv: str, code: str) -> str:
        words = [str(self.root / venv / "bin/python"), "-c", code]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()

    def has(self, venv: str, *modules: str) -> bool:
        imports = [str(self.root / venv / "bin/python"), "-c", f"import {','.join(modules)}"]
        return subprocess.run(imports, capture_output=True, check=False).returncode == 0


@pytest.fixture(scope="module")
def seeded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The script of SEEDED."""
    folder = tmp_path_factory.mktemp("seeded")
    create(folder / "venv", with_pip=True)
    (packages,) = folder.glob("venv/lib/python3*/site-packages")
    script = folder / "python"
    script.write_text(SEEDED.format(python=sys.executable, packages=packages))
    script.chmod(0o755)
    return script


@pytest.fixture
def tree(tmp_path: Path, seeded: Path) -> Tree:
    return Tree(tmp_path, seeded)


@pytest.fixture
def plain_tree(tmp_path: Path) -> Tree:
    """A tree for tests of how environments are created."""
    return Tree(tmp_path, Path(sys.executable))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, seeded: Path) -> Tree:
    """A tree with an environment of vLLM, which tests leave as it is."""
    tree = Tree(tmp_path_factory.mktemp("made"), seeded)
    ended = tree.setup("--backend", "vllm")
    assert ended.returncode == 0, ended.stderr
    return tree


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "modules"),
    [("pytorch", "pytorch"), ("vllm", "vllm"), ("sglang", "sglang,shims")],
)
def test_a_second_run_finds_all_done_by_the_first(engine: str, modules: str, tree: Tree) -> None:
    first = tree.setup("--backend", engine)
    assert first.returncode == 0, first.stderr
    assert tree.has(f".venv-{engine}-cpu", "base", modules)
    assert tree.tells(f".venv-{engine}-cpu", FINDS_OURS) == "torchrun_nodes:handler"
    assert "python -m data.fetch" in first.stdout
    second = tree.setup("--backend", engine)
    assert second.returncode == 0
    assert not second.stderr
    active = f"source '{tree.root}/.venv-{engine}-cpu/bin/activate' && echo $MLPERF_BACKEND"
    shown = subprocess.run(["bash", "-c", active], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == engine


@pytest.mark.slow
@pytest.mark.parametrize(("moment", "kind"), [("creating", "plain_tree"), ("installing", "tree")])
def test_an_interruption_is_made_good_by_the_next_run(
    moment: str, kind: str, request: pytest.FixtureRequest
) -> None:
    tree: Tree = request.getfixturevalue(kind)
    process = subprocess.Popen(
        tree.command("--backend", "pytorch"),
        env=tree.variables,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr
    while moment not in process.stderr.readline():
        assert process.poll() is None
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (tree.root / ".venv-pytorch-cpu/.complete-run").exists()
    again = tree.setup("--backend", "pytorch")
    assert again.returncode == 0, again.stderr
    assert tree.has(".venv-pytorch-cpu", "base", "pytorch")


@pytest.mark.slow
def test_an_interrupt_ends_the_installations_side_by_side(plain_tree: Tree) -> None:
    (plain_tree.root / "requirements" / "test.txt").write_text("base==1\n")
    process = subprocess.Popen(
        plain_tree.command("--test"),
        env=plain_tree.variables,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr
    for _ in ENGINES:  # all of them are being made before any is there
        assert "creating" in process.stderr.readline()
    installing = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode != 0
    _, alive = psutil.wait_procs(installing, timeout=10)
    assert not alive


@pytest.mark.slow
def test_tests_begin_before_the_environments_of_other_engines_are_there(tree: Tree) -> None:
    """They keep the bytecode of what they import, which is installed without it."""
    (tree.root / "requirements" / "test.txt").write_text("pytest==1\n")
    (tree.wheels / "vllm-1-py3-none-any.whl").unlink()
    shown = ("MLPERF_BACKEND", "PYTHONDONTWRITEBYTECODE")
    make_wheel(tree.wheels, "pytest", f"import os\nprint(*map(os.environ.get, {shown}))")
    linters = tree.root / "linters"
    linters.mkdir()
    for name in ("ruff", "mypy", "shellcheck"):
        (linters / name).symlink_to("/bin/true")
    ended = tree.setup("--test", PATH=f"{linters}:/usr/bin:/bin", PYTHONDONTWRITEBYTECODE="1")
    assert ended.returncode == 2
    assert "vllm==1" in ended.stderr
    assert "no environment of vllm" in ended.stderr.splitlines()[-1]
    assert ended.stdout.splitlines() == ["pytorch None"]


@pytest.mark.slow
def test_what_offline_lacks_is_named_and_can_be_added_later(made: Tree, tmp_path: Path) -> None:
    poor = tmp_path / "wheels"
    poor.mkdir()
    shutil.copy(made.wheels / "base-1-py3-none-any.whl", poor)
    venv = str(tmp_path / "venv")
    options = ("--backend", "vllm", "--venv", venv)
    ended = made.setup(*options, "--offline", str(poor))
    assert ended.returncode == 2
    assert "vllm==1" in ended.stderr
    assert "run the same command" in ended.stderr
    assert made.setup(*options).returncode == 0
    assert made.has(venv, "base", "vllm")


@pytest.mark.slow
def test_an_environment_of_another_engine_is_not_mixed(made: Tree, tmp_path: Path) -> None:
    venv = str(tmp_path / "venv")
    assert made.setup("--backend", "vllm", "--venv", venv).returncode == 0
    ended = made.setup("--backend", "pytorch", "--venv", venv)
    assert ended.returncode == 2
    assert "is for vllm-cpu, not pytorch-cpu" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    assert made.setup("--venv", venv).returncode == 0  # its own engine needs no naming

    assert made.setup("--backend", "pytorch", "--venv", venv, "--force").returncode == 0
    assert made.has(venv, "pytorch")
    assert not made.has(venv, "vllm")


@pytest.mark.slow
def test_in_an_image_its_environment_is_used(made: Tree) -> None:
    image = str(made.root / ".venv-vllm-cpu")
    ended = made.setup(MLPERF_VENV=image)
    assert ended.returncode == 0, ended.stderr
    assert f"source {image}/bin/activate" in ended.stdout
    for other in (
        made.setup("--backend", "sglang", MLPERF_VENV=image),
        made.setup(MLPERF_BACKEND="sglang", MLPERF_VENV=image),
    ):
        assert other.returncode == 2
        assert "./launch.sh --backend sglang --device cpu" in other.stderr


@pytest.fixture
def engines(made: Tree) -> Callable[..., None]:
    """Marks engines as having a complete environment in the tree."""

    def complete(*names: str) -> None:
        for name in ("pytorch", "sglang"):
            shutil.rmtree(made.root / f".venv-{name}-cpu", ignore_errors=True)
            if name in names:
                (made.root / f".venv-{name}-cpu").mkdir()
                (made.root / f".venv-{name}-cpu/.complete-run").touch()

    return complete


@pytest.mark.slow
def test_the_only_installed_engine_is_used(made: Tree, engines: Callable[..., None]) -> None:
    engines()
    ended = made.setup()
    assert ended.returncode == 0
    assert ".venv-vllm-cpu/bin/activate" in ended.stdout


@pytest.mark.slow
@pytest.mark.parametrize("others", [["sglang"], ["pytorch"], ["pytorch", "sglang"]])
def test_of_several_engines_one_has_to_be_named(
    others: list[str], made: Tree, engines: Callable[..., None]
) -> None:
    engines(*others)
    ended = made.setup()
    assert ended.returncode == 2
    assert " ".join([*others, "vllm"]) in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    assert made.setup(MLPERF_BACKEND="vllm").returncode == 0
    assert made.setup("--backend", "vllm").returncode == 0
    engines()


@pytest.mark.slow
def test_engines_installed_elsewhere_are_seen(tree: Tree, tmp_path: Path) -> None:
    site = tmp_path / "site"
    for name in ("vllm", "sglang"):
        (site / name).mkdir(parents=True)
        (site / name / "__init__.py").touch()
    ended = tree.setup(PYTHONPATH=str(site))
    assert ended.returncode == 2
    assert "sglang vllm" in ended.stderr
    shutil.rmtree(site / "vllm")
    assert "sglang-cpu.txt" in tree.setup(PYTHONPATH=str(site)).stderr


@pytest.mark.slow
def test_where_there_is_nothing_it_is_pytorch(tree: Tree) -> None:
    assert tree.setup().returncode == 0
    assert tree.has(".venv-pytorch-cpu", "pytorch")


@pytest.mark.slow
def test_where_uv_fails_pip_installs(made: Tree, tmp_path: Path) -> None:
    (tmp_path / "uv").write_text("#!/bin/sh\nexit 2\n")
    (tmp_path / "uv").chmod(0o755)
    path = f"{tmp_path}:/usr/bin:/bin"
    ended = made.setup("--backend", "vllm", "--venv", str(tmp_path / "venv"), PATH=path)
    assert ended.returncode == 0, ended.stderr
    assert "uv could not install the packages; trying pip" in ended.stderr
    assert made.has(str(tmp_path / "venv"), "vllm")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("uv") is None, reason="uv is not installed")
@pytest.mark.parametrize("offline", [True, False])
def test_uv_installs_what_pip_would(offline: bool, tree: Tree) -> None:
    """From a folder of wheels, named by --offline or by pip's configuration."""
    tree.variables["PATH"] = f"{Path(str(shutil.which('uv'))).parent}:/usr/bin:/bin"
    pip = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": tree.wheels.as_uri()}
    ended = tree.setup("--backend", "sglang", offline=offline, **({} if offline else pip))
    assert ended.returncode == 0, ended.stderr
    assert "pip" not in ended.stderr
    assert tree.has(".venv-sglang-cpu", "base", "sglang", "shims")
    assert tree.tells(".venv-sglang-cpu", INSTALLER) == "uv"


@pytest.mark.slow
def test_pip_brings_uv(tree: Tree) -> None:
    make_wheel(tree.wheels, "uv")
    program = zipfile.ZipInfo("uv-1.data/scripts/uv")
    program.external_attr = 0o100755 << 16
    with zipfile.ZipFile(tree.wheels / "uv-1-py3-none-any.whl", "a") as wheel:
        wheel.writestr(program, '#!/bin/sh\necho uv "$@" >&2\n')
    ended = tree.setup("--backend", "pytorch")
    assert ended.returncode == 0
    assert "uv pip install" in ended.stderr
    assert not tree.has(".venv-pytorch-cpu", "pytorch")


@pytest.mark.slow
def test_what_does_not_import_is_not_verified(made: Tree) -> None:
    ended = made.setup("--backend", "vllm", "--verify")
    assert ended.returncode == 1
    assert "No module named 'vllm.v1'" in ended.stderr
    assert "activate" not in ended.stdout


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.skipif(
    not Path(sys.prefix, ".mlperf").exists(), reason="this environment is not of setup.sh's making"
)
@pytest.mark.parametrize(
    "engine",
    [
        pytest.param("pytorch", id="pytorch"),
        pytest.param("vllm", marks=pytest.mark.vllm),
        pytest.param("sglang", marks=pytest.mark.sglang),
    ],
)
def test_a_real_environment_is_verified_and_found_complete(engine: str) -> None:
    if Path(sys.prefix, ".mlperf").read_text().partition("-")[0] != engine:
        pytest.skip(f"this environment is not {engine}'s")
    verified = subprocess.run(
        [ROOT / "setup.sh", "--venv", sys.prefix], capture_output=True, text=True
    )
    assert verified.returncode == 0
    assert not verified.stderr
    damaged = subprocess.run(
        [ROOT / "setup.sh", "--venv", sys.prefix, "--verify"], capture_output=True, text=True
    )
    assert damaged.returncode == 0, damaged.stderr
    assert f"engine   {engine}" in damaged.stdout
    assert "samples/s" in damaged.stdout
