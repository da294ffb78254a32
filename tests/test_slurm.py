"""The batch files for Slurm, checked by a real Slurm of four nodes on this machine."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BATCH_FILES = sorted((ROOT / "docker" / "slurm").glob("*.sbatch"))
START_S = 60
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}
SlurmctldPort={ports[0]}
AuthType=auth/none
CryptoType=crypto/none
CredType=cred/none
StateSaveLocation={folder}
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmdParameters=config_overrides
SlurmUser=root
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
GresTypes=gpu
NodeName=node[1-4] NodeHostname={host} Port=[{ports[1]}-{ports[4]}] CPUs=64 Gres=gpu:8
PartitionName=all Nodes=ALL Default=YES
"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of commands for a Slurm whose four nodes have eight GPUs each."""
    if not shutil.which("slurmctld") or not shutil.which("slurmd"):
        pytest.skip("Slurm is not installed: apt-get install slurm-wlm")
    if os.geteuid():
        pytest.skip("Slurm's daemons need root")
    folder = tmp_path_factory.mktemp("slurm")
    with socket.create_server(("", 0)) as free:
        first = free.getsockname()[1]
    settings = {"host": socket.gethostname(), "folder": folder, "ports": range(first, first + 5)}
    (folder / "slurm.conf").write_text(CONFIGURATION.format(**settings))
    (folder / "gres.conf").write_text(f"NodeName=node[1-4] Name=gpu File={folder}/gpu[0-7]\n")
    for number in range(8):
        (folder / f"gpu{number}").touch()
    variables = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
    daemons = [["slurmctld", "-D"], *(["slurmd", "-D", "-N", f"node{n}"] for n in range(1, 5))]
    with ExitStack() as stack:
        log = stack.enter_context((folder / "log").open("w"))
        for words in daemons:
            daemon = stack.enter_context(
                subprocess.Popen(words, env=variables, stdout=log, stderr=subprocess.STDOUT)
            )
            stack.callback(daemon.terminate)
        until = time.monotonic() + START_S
        while call(["sinfo", "--noheader", "--format=%D %T"], variables).stdout != "4 idle\n":
            assert time.monotonic() < until, (folder / "log").read_text()
            time.sleep(0.2)
        yield variables


def call(words: list[str], variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words, cwd=ROOT, env=variables, capture_output=True, text=True, check=False, timeout=60
    )


@pytest.mark.slow
@pytest.mark.parametrize("path", BATCH_FILES, ids=lambda path: path.name)
def test_slurm_accepts_a_batch_file(path: Path, slurm: dict[str, str]) -> None:
    ended = call(["sbatch", "--test-only", str(path), "--mode", "offline"], slurm)
    assert ended.returncode == 0, ended.stderr
    nodes = {"torchrun.sbatch": "node[1-2]", "servers.sbatch": "node[1-4]"}[path.name]
    assert f"on nodes {nodes} in partition all" in ended.stderr


@pytest.mark.slow
def test_a_mistake_in_one_is_found(slurm: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "torchrun.sbatch"
    path.write_text(BATCH_FILES[-1].read_text().replace("--nodes=2", "--nodes=5"))
    ended = call(["sbatch", "--test-only", str(path)], slurm)
    assert ended.returncode != 0
    assert "Requested node configuration is not available" in ended.stderr
