"""launch.sh executes what it prints and what is documented."""

import re
import shlex
from collections.abc import Iterator

import pytest

from tests.hosts import ROOT, Host, new_host

GUIDES = ("README.md", "docker/README.md")


@pytest.fixture
def host() -> Iterator[Host]:
    with new_host() as host:
        yield host


@pytest.mark.parametrize("running", [False, True])
def test_a_dry_run_prints_what_is_executed_and_does_nothing(running: bool, host: Host) -> None:
    if running:
        host.answer("container", "true")
    options = [
        *("--backend", "vllm", "--device", "cuda", "--gpus", "0,1", "--env", "A=it's $HOME\n*"),
        *("--extra-mounts", "with space:/a b:ro", "--", "echo", "a  b", "'"),
    ]
    shown = host.launch("--dry-run", *options)
    assert shown.code == 0
    assert not shown.commands
    assert not (host.folder / "my home/.cache").exists()
    pasted = host.script(["bash", "-ec", shown.out])
    assert pasted.code == 0, pasted.err
    assert pasted.commands == host.launch(*options).commands


def test_a_dry_run_needs_no_engine(host: Host) -> None:
    (host.bin / "docker").unlink()
    host.lose_engines()
    shown = host.launch("--backend", "vllm", "--dry-run", "--engine", "podman")
    assert shown.code == 0
    assert [shlex.split(line)[0] for line in shown.out.splitlines()] == [
        "podman",
        "mkdir",
        "podman",
    ]


def test_a_dry_run_warns_of_what_is_missing_and_shows_the_rest(host: Host) -> None:
    options = ["--backend", "vllm", "--gpu-count", "2", "--extra-mounts", "/nosuch:/data"]
    refused = host.launch(*options)
    assert refused.code == 2
    assert not refused.commands
    shown = host.launch("--dry-run", *options)
    assert shown.code == 0
    for word in ("nvidia-smi finds no GPU", "/nosuch does not exist"):
        assert word in shown.err
    run = shlex.split(shown.out.splitlines()[-1])
    assert run[run.index("--gpus") + 1] == "2"
    assert "type=bind,source=/nosuch,target=/data" in run


def documented() -> list[str]:
    """The blocks of commands for hosts; those that run here as they stand are test_readme's."""
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in GUIDES]
    return [block for text in texts for block in re.findall(r"```sh\n(.*?)```", text, re.S)]


@pytest.mark.parametrize("block", documented(), ids=lambda block: block.split("\n")[0][:60])
def test_documented_commands(block: str, host: Host) -> None:
    host.provide("nvidia-smi", "#!/bin/sh\n")
    for program in ("apptainer", "enroot", "srun", "podman", "python3", "sbatch", "kubectl"):
        host.provide(program)
    for name in ("data", "models"):  # which this machine need not have
        block = re.sub(rf'(?<=[",])/{name}(?=[:"])', f"{host.folder}/{name}", block)
    host.tree.chmod(0o777)
    ended = host.script(["bash", "-ec", f"cd '{host.tree}'\n{block}"])
    assert ended.code == 0, ended.err
    assert ended.commands
    for command in ended.commands:
        if command[:2] == ["docker", "run"]:
            assert re.fullmatch(
                r"mlperf-deepseek-r1:(pytorch|vllm|sglang)-(cpu|cuda)", image(command)
            )
            targets = re.findall(r"type=bind,source=[^,]*,target=([^,\n]*)", "\n".join(command))
            assert len(set(targets)) == len(targets) >= 3  # engines refuse a target twice


def image(command: list[str]) -> str:
    return next(word for word in command if word.startswith("mlperf-deepseek-r1:"))


def test_the_front_door() -> None:
    command = (
        './launch.sh --backend vllm --gpu-count 2 --extra-mounts "/data:/data,/models:/models"'
        " --local-user 0"
    )
    assert any(command in block.replace(" \\\n ", "") for block in documented())
