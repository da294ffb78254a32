"""The Dockerfile as text: reproducible images that are cheap to change and belong to no user."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text()
STEPS = [  # instruction and its arguments, continuations joined, comments left out
    tuple(step.split(maxsplit=1))
    for step in re.sub(r"\\\n\s*", "", re.sub(r"(?m)^#.*\n", "", DOCKERFILE)).splitlines()
    if step.strip()
]
ENGINES = ("pytorch", "vllm", "sglang")


def build_arguments(backend: str, device: str) -> dict[str, str]:
    """The build's arguments, and its tag, as launch.sh gives them."""
    shown = subprocess.run(
        [ROOT / "launch.sh", "--backend", backend, "--device", device, "--build", "--dry-run"],
        capture_output=True,
        text=True,
        check=True,
    )
    build = shown.stdout.splitlines()[0].replace("\\ ", " ")
    arguments = dict(re.findall(r"--build-arg (\w+)=(.*?)(?= --build-arg| /)", build))
    return arguments | {"tag": re.findall(r"--tag (\S+)", build)[0]}


def position(start: str) -> int:
    return next(at for at, step in enumerate(STEPS) if " ".join(step).startswith(start))


@pytest.mark.parametrize("engine", ENGINES)
def test_images_of_two_devices_differ_in_base_and_requirements_only(engine: str) -> None:
    cpu, cuda = build_arguments(engine, "cpu"), build_arguments(engine, "cuda")
    differ = {name for name in cpu if cpu[name] != cuda[name]}
    assert {"BASE", "DEVICE", "tag"} <= differ <= {"BASE", "DEVICE", "tag", "ENGINE"}
    used = [step for step in STEPS if "DEVICE}" in " ".join(step)]
    assert [step[0] for step in used] == ["RUN", "LABEL"]
    assert "./setup.sh" in used[0][1]  # which takes the file of requirements by that name


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_engine_of_the_label_is_the_one_pinned(engine: str, device: str) -> None:
    pinned = build_arguments(engine, device)["ENGINE"].split()
    files = [ROOT / "requirements" / "base.txt"]
    files += (ROOT / "requirements").glob(f"{engine}-{device}*.txt")
    lines = [line for file in files for line in file.read_text().splitlines()]
    assert set(pinned) <= set(lines)
    name = "torch" if engine == "pytorch" else engine
    assert any(re.match(rf"{name}(-cpu)?==", pin) for pin in pinned)


def test_every_argument_that_launch_gives_is_declared_and_the_base_agrees() -> None:
    declared = dict(step[1].partition("=")[::2] for step in STEPS if step[0] == "ARG")
    arguments = build_arguments("pytorch", "cpu")
    assert set(arguments) - {"tag"} == set(declared) - {"INDEX"}
    assert declared["BASE"] == arguments["BASE"]
    for base in (arguments["BASE"], build_arguments("pytorch", "cuda")["BASE"]):
        assert re.search(r":[\w.-]*\d+\.\d+", base), f"{base}: no version"


def test_a_change_of_the_code_repeats_nothing_heavy() -> None:
    code = position("COPY . .")
    assert position("COPY setup.sh") < position("RUN HOME=/root") < code
    assert not [step for step in STEPS[code:] if step[0] == "RUN"]
    for argument in ("REVISION", "RECIPE", "ENGINE"):  # they change more often than the rest
        assert position(f"ARG {argument}") > code


def test_nothing_from_the_net_is_run_as_it_comes() -> None:
    text = " ".join(" ".join(step) for step in STEPS)
    assert not re.search(r"curl|wget|https?:|\bADD\b|\|\s*(ba)?sh", text)


def test_nccl_finds_the_verbs_of_infiniband() -> None:
    [install] = [step[1] for step in STEPS if "apt-get install" in " ".join(step)]
    packages = set(install.split("--no-install-recommends")[1].split("&&")[0].split())
    assert {"libibverbs1", "ibverbs-providers", "rdmacm-utils"} <= packages


def test_the_image_belongs_to_no_user_and_has_a_health_check() -> None:
    kinds = [step[0] for step in STEPS]
    assert "USER" not in kinds
    assert kinds.count("HEALTHCHECK") == 1
    assert "useradd" not in DOCKERFILE
    assert re.search(r"ENV HOME=\S+ +USER=", " ".join(map(" ".join, STEPS)))


@pytest.mark.parametrize("label", ["revision", "engine", "backend"])
def test_labels(label: str) -> None:
    assert re.search(rf'\.{label}="\$\{{[A-Z]+\}}', DOCKERFILE)


def test_what_git_leaves_out_stays_out_of_the_image() -> None:
    left_out = {
        line.rstrip("/").removeprefix("**/")
        for line in (ROOT / ".dockerignore").read_text().splitlines()
    }
    ignored = (ROOT / ".gitignore").read_text().split()
    assert {pattern.strip("/") for pattern in ignored} <= left_out
    assert ".git" in left_out
