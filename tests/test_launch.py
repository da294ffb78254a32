"""launch.sh: its command lines for a container engine, recorded by a fake engine."""

import os
import pty
import re
import shlex
from collections.abc import Iterator

import pytest

from tests.hosts import ROOT, Host, Launched, new_host


@pytest.fixture
def host() -> Iterator[Host]:
    with new_host() as host:
        yield host


def mounts(launched: Launched) -> dict[str, str]:
    """Source by target, of all mounts."""
    sources = {}
    for text in launched.values("--mount"):
        parts = dict(part.partition("=")[::2] for part in text.split(","))
        assert parts["type"] == "bind"
        assert parts["target"] not in sources  # engines refuse that
        sources[parts["target"]] = parts["source"] + (":ro" if "readonly" in parts else "")
    return sources


# --- mistakes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "pass --backend pytorch, vllm or sglang"),
        ("--backend", "--backend needs a value"),
        ("--backend tensorrt", "--backend tensorrt is not one of"),
        ("--backend vllm --gpu 2", "unknown option --gpu"),
        ("--backend vllm ./setup.sh", "comes after --"),
        ("--backend vllm --device tpu", "--device tpu is not one of"),
        ("--backend vllm --gpus 0", "install NVIDIA's driver"),
        ("--backend vllm --gpu-count 1", "omit --gpus and --gpu-count"),
        ("--backend vllm --device cpu --gpu-count 1", "can't be combined with --device cpu"),
        ("--backend vllm --device cuda --gpu-count 0", "without GPUs, pass --device cpu"),
        ("--backend vllm --device cuda --gpu-count two", "is not a number or all"),
        ("--backend vllm --device cuda --gpus 0, --gpu-count 1", "pass --gpus or --gpu-count"),
        ("--backend vllm --device cuda --gpus 0,,1", "is not a list"),
        ("--backend vllm --local-user yes", "--local-user yes is neither 0 nor 1"),
        ("--backend vllm --infiniband 1", "infiniband does not exist: load the driver"),
        ("--backend vllm --infiniband yes", "--infiniband yes is not one of auto, 0, 1"),
        ("--backend vllm --docker-arg /dev/gdrdrv", "--docker-arg /dev/gdrdrv is not an option"),
        ("--backend vllm --docker-arg", "--docker-arg needs a value"),
        ("--backend vllm --shm-size lots", "is not a size"),
        ("--backend vllm --env 1A=2", "1A=2 is not NAME=VALUE"),
        ("--backend vllm --build-arg =2", "=2 is not NAME=VALUE"),
        ("--backend vllm --engine crun", "--engine crun is neither docker nor podman"),
        ("--backend vllm --engine podman", "install Docker or Podman"),
        ("--backend vllm --build --no-build", "pass one of --build, --no-build and --pull"),
        ("--backend vllm --no-build", "omit --no-build, or pass --pull"),
        ("--backend vllm --extra-mounts data", "neither FOLDER:/FOLDER"),
        ("--backend vllm --extra-mounts data:data", "neither FOLDER:/FOLDER"),
        ("--backend vllm --extra-mounts data:/data:w", "mode w, which is neither ro nor rw"),
        ("--backend vllm --extra-mounts data:/data,nosuch:/x", "nosuch does not exist: create it"),
        ("--backend vllm --model-cache-dir a,comma", "can't mount a path with a comma"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_done(
    options: str, message: str, host: Host
) -> None:
    if "podman" in options:
        host.lose_engines()
    ended = host.launch(*options.split())
    assert ended.code == 2, ended.err
    assert message in ended.err
    assert len(ended.err.splitlines()) == 1
    assert not ended.commands


def test_help_names_every_option_of_the_parser(host: Host) -> None:
    shown = host.launch("--help")
    assert shown.code == 0
    text = (ROOT / "launch.sh").read_text()
    parser = text[text.index("while [ $# -gt 0 ]") : text.index("unknown option")]
    parsed = set(re.findall(r"(--[a-z-]+) ?[|)]", parser))
    assert len(parsed) >= 20
    assert parsed == set(re.findall(r"^ +(--[a-z-]+)", shown.out, re.M))


# --- command lines


def test_a_first_launch_builds_then_runs(host: Host) -> None:
    build, run = host.launch("--backend", "pytorch", "--device", "cpu").commands
    assert build[:2] == ["docker", "build"]
    assert build[-1] == str(host.tree)
    assert "BACKEND=pytorch" in build
    assert "DEVICE=cpu" in build
    assert any(word.startswith("ENGINE=mlcommons-loadgen==") for word in build)
    assert run[:2] == ["docker", "run"]
    assert run[-2:] == ["mlperf-deepseek-r1:pytorch-cpu", "bash"]


def test_an_image_is_built_again_only_for_other_requirements(host: Host) -> None:
    first = host.launch("--backend", "vllm", "--device", "cpu")
    recipe = next(word for word in first.commands[0] if word.startswith("RECIPE="))
    host.answer("image", recipe.removeprefix("RECIPE="))
    assert [line[1] for line in host.launch("--backend", "vllm").commands] == ["run"]
    assert len(host.launch("--backend", "vllm", "--build").commands) == 2

    (host.tree / "run_eval.py").write_text("code")
    assert len(host.launch("--backend", "vllm").commands) == 1

    with (host.tree / "requirements" / "vllm-cpu.txt").open("a") as file:
        file.write("\nmore==1\n")
    changed = host.launch("--backend", "vllm")
    assert "for other requirements" in changed.err
    assert [line[1] for line in changed.commands] == ["build", "run"]
    kept = host.launch("--backend", "vllm", "--no-build")
    assert "for other requirements" in kept.err
    assert [line[1] for line in kept.commands] == ["run"]


def test_pull_replaces_a_build(host: Host) -> None:
    named = ("--image-name", "registry:5000/r1", "--image-tag", "v6.1")
    pull, run = host.launch("--backend", "sglang", "--pull", *named).commands
    assert pull == ["docker", "pull", "registry:5000/r1:v6.1"]
    assert run[-2] == "registry:5000/r1:v6.1"


def test_build_arguments_of_the_caller_come_last(host: Host) -> None:
    options = ("--build-arg", "BASE=my/base:1", "--build-arg", "INDEX=https://a/b c")
    build = host.launch("--backend", "vllm", *options).commands[0]
    bases = [word for word in build if word.startswith("BASE=")]
    assert bases[-1] == "BASE=my/base:1"
    assert "INDEX=https://a/b c" in build


@pytest.mark.parametrize(
    ("engine", "options", "expected"),
    [
        ("docker", "", ["--gpus", "all"]),
        ("docker", "--gpu-count all", ["--gpus", "all"]),
        ("docker", "--gpu-count 2", ["--gpus", "2"]),
        ("docker", "--gpus 3", ["--gpus", '"device=3"']),
        ("docker", "--gpus 0,GPU-1a-2b", ["--gpus", '"device=0,GPU-1a-2b"']),
        ("podman", "", ["--device", "nvidia.com/gpu=all"]),
        ("podman", "--gpu-count all", ["--device", "nvidia.com/gpu=all"]),
        ("podman", "--gpu-count 1", ["--device", "nvidia.com/gpu=0"]),
        (
            "podman",
            "--gpu-count 2",
            ["--device", "nvidia.com/gpu=0", "--device", "nvidia.com/gpu=1"],
        ),
        (
            "podman",
            "--gpus 3,5",
            ["--device", "nvidia.com/gpu=3", "--device", "nvidia.com/gpu=5"],
        ),
    ],
)
def test_gpus(engine: str, options: str, expected: list[str], host: Host) -> None:
    host.provide(engine)
    host.provide("nvidia-smi", "#!/bin/sh\n")  # its exit status 0 means that there are GPUs
    launched = host.launch("--backend", "vllm", "--engine", engine, *options.split())
    arguments = [
        word
        for at, option in enumerate(launched.run)
        if option in ("--gpus", "--device")
        for word in launched.run[at : at + 2]
    ]
    assert arguments == expected
    assert launched.run[-2].endswith(":vllm-cuda")
    assert "NVIDIA Container Toolkit" in launched.err


def test_without_a_gpu_the_image_for_cpus_gets_none(host: Host) -> None:
    host.provide("nvidia-smi", "#!/bin/sh\nexit 9\n")  # as without a driver
    launched = host.launch("--backend", "vllm")
    assert launched.run[-2].endswith(":vllm-cpu")
    assert "--gpus" not in launched.run
    assert "NVIDIA" not in launched.err


def test_the_tree_and_the_caches_are_mounted(host: Host) -> None:
    home = host.folder / "my home/.cache"
    assert mounts(host.launch("--backend", "vllm")) == {
        "/workspace": str(host.tree),
        "/home/mlperf": f"{home}/mlperf-deepseek-r1/home-{host.user}",
        "/models": f"{home}/huggingface",
    }
    assert (home / "huggingface").is_dir()  # an engine would make it root's


@pytest.mark.parametrize(
    ("variables", "options", "models"),
    [
        ({"HF_HOME": "/tmp/hub"}, [], "/tmp/hub"),
        ({"XDG_CACHE_HOME": "/tmp/xdg"}, [], "/tmp/xdg/huggingface"),
        ({"HF_HOME": "/tmp/hub"}, ["--model-cache-dir", "/big disk/hub"], "/big disk/hub"),
        ({}, ["--model-cache-dir", "models"], "{folder}/models"),
    ],
)
def test_where_models_are_kept(
    variables: dict[str, str], options: list[str], models: str, host: Host
) -> None:
    host.variables |= variables
    shown = host.launch("--backend", "vllm", "--dry-run", *options)
    wanted = f"type=bind,source={models.format(folder=host.folder)},target=/models"
    assert wanted in shlex.split(shown.out.splitlines()[-1])


@pytest.mark.parametrize(
    ("mounts_", "sources"),
    [
        (["data:/data"], {"/data": "{0}/data"}),
        (["{0}/data:/data"], {"/data": "{0}/data"}),
        (["data:/data,models:/m:ro"], {"/data": "{0}/data", "/m": "{0}/models:ro"}),
        (["data:/data:rw"], {"/data": "{0}/data"}),
        (["with space:/a b:ro"], {"/a b": "{0}/with space:ro"}),
        (["data:/data", "models:/m"], {"/data": "{0}/data", "/m": "{0}/models"}),
        (["bin/docker:/one/file"], {"/one/file": "{0}/bin/docker"}),
        (["data:/data,models:/models"], {"/data": "{0}/data", "/models": "{0}/models"}),
        (["data:/models/:ro"], {"/models": "{0}/data:ro"}),
        (["data:/d,models:/d"], {"/d": "{0}/models"}),
    ],
)
def test_extra_mounts(mounts_: list[str], sources: dict[str, str], host: Host) -> None:
    options = [word for text in mounts_ for word in ("--extra-mounts", text.format(host.folder))]
    launched = mounts(host.launch("--backend", "vllm", *options))
    for target, source in sources.items():
        assert launched[target] == source.format(host.folder)
    assert set(launched) == {"/workspace", "/home/mlperf", "/models", *sources}


@pytest.mark.parametrize(
    ("engine", "local", "inside", "keeps"),
    [
        ("docker", "1", "{0}:{0}", False),
        ("docker", "0", "0:0", False),
        ("podman", "1", "{0}:{0}", True),
        ("podman", "0", "0:0", False),
    ],
)
def test_the_user_inside(engine: str, local: str, inside: str, keeps: bool, host: Host) -> None:
    host.provide(engine)
    launched = host.launch("--backend", "vllm", "--engine", engine, "--local-user", local)
    assert launched.values("--user") == [inside.format(host.user)]
    assert (launched.values("--userns") == ["keep-id"]) == keeps
    number = inside.format(host.user).partition(":")[0]
    assert mounts(launched)["/home/mlperf"].endswith(f"home-{number}")


ROOTLESS = "[name=seccomp,profile=builtin name=rootless name=cgroupns]\n"


def test_with_rootless_docker_its_root_is_the_caller(host: Host) -> None:
    host.answer("info", ROOTLESS)
    launched = host.launch("--backend", "vllm")
    assert launched.values("--user") == ["0:0"]
    assert mounts(launched)["/home/mlperf"].endswith("home-0")
    assert "using --local-user 0" in launched.err
    assert [value for value in launched.values("--ulimit") if "memlock" in value] == []

    explicit = host.launch("--backend", "vllm", "--local-user", "0")
    assert explicit.values("--user") == ["0:0"]
    assert "rootless" not in explicit.err

    against = host.launch("--backend", "vllm", "--local-user", "1")
    assert against.values("--user") == [f"{host.user}:{host.user}"]
    assert "--local-user 0 can" in against.err


def test_a_running_container_of_rootless_docker_is_entered_as_its_root(host: Host) -> None:
    host.answer("info", ROOTLESS)
    host.answer("container", "true")
    assert host.launch("--backend", "vllm").values("--user") == ["0:0"]


def test_docker_with_root_keeps_the_caller_and_locks_memory(host: Host) -> None:
    host.answer("info", "[name=apparmor name=seccomp,profile=builtin name=cgroupns]\n")
    launched = host.launch("--backend", "vllm")
    assert launched.values("--user") == [f"{host.user}:{host.user}"]
    assert "memlock=-1" in launched.values("--ulimit")
    # where data or model are missing, it says how to get them
    assert all("python -m data.fetch gets it" in line for line in launched.err.splitlines())


def test_podman_by_docker_s_name_is_podman(host: Host) -> None:
    host.provide("podman")
    host.answer("version", "podman version 5.4.2\n")
    host.answer("info", ROOTLESS)  # which Podman decides itself
    launched = host.launch("--backend", "vllm")
    assert launched.run[0] == "podman"
    assert launched.values("--userns") == ["keep-id"]
    assert launched.values("--user") == [f"{host.user}:{host.user}"]


@pytest.mark.parametrize("engine", ["docker", "podman"])
@pytest.mark.parametrize(
    ("options", "there", "handed_on"),
    [
        ("--network host", True, True),
        ("--network host", False, False),
        ("", True, False),
        ("--network bridge", True, False),
        ("--network host --infiniband 0", True, False),
        ("--infiniband 1", True, True),
        ("--infiniband auto --network host", True, True),
    ],
)
def test_adapters_are_handed_on(
    engine: str, options: str, there: bool, handed_on: bool, host: Host
) -> None:
    devices = host.adapters() if there else ""
    host.provide(engine)
    launched = host.launch("--backend", "vllm", "--engine", engine, *options.split())
    assert (launched.values("--device") == [devices]) == handed_on
    assert (launched.values("--cap-add") == ["IPC_LOCK"]) == handed_on
    assert "memlock=-1" in launched.values("--ulimit") or engine == "podman"


@pytest.mark.parametrize(("engine", "info"), [("podman", ""), ("docker", ROOTLESS)])
def test_too_little_lockable_memory_is_reported(engine: str, info: str, host: Host) -> None:
    host.adapters()
    host.provide(engine)
    host.answer("info", info)
    command = f"ulimit -l 64; '{host.tree}/launch.sh' --backend vllm --infiniband 1"
    launched = host.script(["bash", "-c", f"{command} --engine {engine}"])
    assert "this user's limit is 64 KB: raise memlock" in launched.err
    host.answer("info", "")
    if engine == "docker":  # which then gives the container a limit of its own
        assert "KB" not in host.script(["bash", "-c", command]).err


def test_arguments_of_the_engine_s_own_are_handed_on(host: Host) -> None:
    odd = "--env=A=a b\t'$HOME`id`"
    options = ("--docker-arg", "--device=/dev/gdrdrv", "--docker-arg", odd, "--docker-arg", "-P")
    run = host.launch("--backend", "vllm", *options, "--", "true").run
    at = run.index("mlperf-deepseek-r1:vllm-cpu")
    assert run[at - 3 : at] == ["--device=/dev/gdrdrv", odd, "-P"]
    assert run[at + 1 :] == ["true"]


@pytest.mark.skipif(os.getuid() != 0, reason="the tests are not run as root")
@pytest.mark.parametrize("engine", ["docker", "podman"])
def test_root_is_root_inside(engine: str, host: Host) -> None:
    host.provide(engine)
    launched = host.launch("--backend", "vllm", "--engine", engine, user=0)
    assert launched.values("--user") == ["0:0"]
    assert "--userns" not in launched.run


def test_variables_and_the_command_keep_every_character(host: Host) -> None:
    odd = "a b\t'\"$HOME`id`\\*\n;"
    launched = host.launch("--backend", "vllm", "--env", f"X={odd}", "--env", "HF_TOKEN", "--", odd)
    assert f"X={odd}" in launched.values("--env")
    assert "HF_TOKEN" in launched.values("--env")
    assert launched.run[-1] == odd


def test_options_of_the_command_are_its_own(host: Host) -> None:
    launched = host.launch("--backend", "vllm", "--", "./setup.sh", "--backend", "pytorch", "--")
    assert launched.run[-4:] == ["./setup.sh", "--backend", "pytorch", "--"]
    assert launched.run[-5] == "mlperf-deepseek-r1:vllm-cpu"


@pytest.mark.parametrize(
    ("options", "option", "value"),
    [
        ("--shm-size 1g", "--shm-size", "1g"),
        ("", "--shm-size", "32g"),
        ("--network host", "--network", "host"),
        ("--container-name mine", "--name", "mine"),
        ("", "--workdir", "/workspace"),
    ],
)
def test_what_is_handed_on(options: str, option: str, value: str, host: Host) -> None:
    assert host.launch("--backend", "vllm", *options.split()).values(option) == [value]


def test_the_network_is_the_engines_own_unless_named(host: Host) -> None:
    assert "--network" not in host.launch("--backend", "vllm").run


def test_containers_of_two_users_and_engines_have_two_names(host: Host) -> None:
    names = {
        host.launch("--backend", backend, "--device", device).values("--name")[0]
        for backend, device in (("vllm", "cpu"), ("sglang", "cpu"), ("vllm", "cuda"))
    }
    assert len(names) == 3
    host.provide("id", "#!/bin/sh\necho another\n")
    assert host.launch("--backend", "vllm").values("--name")[0] not in names


def test_podman_is_used_where_docker_is_missing(host: Host) -> None:
    (host.bin / "docker").unlink()
    host.provide("podman")
    build, run = host.launch("--backend", "vllm").commands
    assert (build[0], run[0]) == ("podman", "podman")
    assert build[build.index("--format") + 1] == "docker"  # where health checks are kept


def test_a_terminal_is_handed_on_and_a_pipe_too(host: Host) -> None:
    assert "--tty" not in host.launch("--backend", "vllm").run
    outer, inner = pty.openpty()
    launched = host.launch(
        "--backend", "vllm", stdin=inner, stdout=inner, stderr=inner, capture_output=False
    )
    assert "--tty" in launched.run
    assert "--interactive" in launched.run
    half = host.launch("--backend", "vllm", stdin=inner)
    assert "--tty" not in half.run
    os.close(outer)
    os.close(inner)


def test_a_running_container_is_entered(host: Host) -> None:
    host.answer("container", "true")
    launched = host.launch(
        "--backend", "vllm", "--container-name", "mine", "--env", "A=1", "--", "ls", "a b"
    )
    assert len(launched.commands) == 1
    assert launched.run[:2] == ["docker", "exec"]
    assert launched.run[-3:] == ["mine", "ls", "a b"]
    assert launched.values("--user") == [f"{host.user}:{host.user}"]
    assert "A=1" in launched.values("--env")
    assert not {"--rm", "--mount", "--gpus"} & set(launched.run)
    assert "entering the running container mine" in launched.err


def test_a_stopped_container_is_in_the_way(host: Host) -> None:
    host.answer("container", "false")
    ended = host.launch("--backend", "vllm", "--container-name", "mine")
    assert ended.code == 2
    assert "docker rm mine" in ended.err


def test_the_exit_code_is_the_commands(host: Host) -> None:
    host.provide("docker", '#!/bin/sh\n[ "$1" != run ] || exit 37\n')
    assert host.launch("--backend", "vllm").code == 37


def test_nothing_is_run_on_an_image_that_failed_to_build(host: Host) -> None:
    host.provide("docker", '#!/bin/sh\n[ "$1" = run ] && exit 37; exit 5\n')
    assert host.launch("--backend", "vllm").code == 5
