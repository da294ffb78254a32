"""A lost rank is named once on each machine, and all ranks exit; real processes on loopback."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from errors import EngineError
from tests.ref_dsinfer.rank_presence import FolderStore

ROOT = Path(__file__).parents[2]
WORKER = Path(__file__).with_name("rank_presence.py")
END_S = 20  # for all to be gone

Start = Callable[..., list[subprocess.Popen]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts ranks, on machines of as many ranks as `machine`, of which some do otherwise."""
    ranks: list[subprocess.Popen] = []

    def begin(world: int, machine: int, **does: str) -> list[subprocess.Popen]:
        for rank in range(world):
            place = rank, world, rank // machine * machine, machine
            words = map(str, (tmp_path, *place, does.get(f"rank{rank}", "wait")))
            variables = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank % machine),
                "PYTHONPATH": str(ROOT),
            }
            ranks.append(
                subprocess.Popen(
                    [sys.executable, WORKER, *words],
                    env=os.environ | variables,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        for one in ranks:
            assert one.stdout
            assert one.stdout.readline() == "met\n"
        for one in ranks:  # none does anything before all have met
            assert one.stdin
            one.stdin.write("\n")
            one.stdin.flush()
        return ranks

    yield begin
    for one in ranks:
        one.kill()
        one.wait()


def ended(ranks: list[subprocess.Popen]) -> list[tuple[int, str]]:
    """Exit code and standard error of each."""
    outputs = [one.communicate(timeout=END_S)[1] for one in ranks]
    return [(one.returncode, text) for one, text in zip(ranks, outputs, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize(("machine", "victim"), [(4, 2), (2, 0)])
def test_a_rank_that_is_killed_is_named_once_a_machine(
    machine: int, victim: int, start: Start
) -> None:
    ranks = start(4, machine)
    ranks[victim].kill()
    results = ended(ranks)
    line = (
        f"error: rank {victim} of 4 (process of {victim}) died without an error message: it crashed"
        " or was killed, perhaps by the kernel's out-of-memory killer (see dmesg)\n"
    )
    speakers = {
        next(rank for rank in range(at, at + machine) if rank != victim)
        for at in range(0, 4, machine)
    }
    for rank, (code, output) in enumerate(results):
        assert code == (-9 if rank == victim else EngineError.exit_code)
        assert output == (line if rank in speakers else "")


@pytest.mark.slow
def test_a_rank_that_exits_with_an_error_is_named_on_other_machines_only(start: Start) -> None:
    results = ended(start(4, 2, rank2="end"))
    assert results[2] == (7, "error: a file is missing\n")
    assert results[3] == (12, "")
    assert results[0] == (
        12,
        "error: rank 2 of 4 (process of 2) failed: see its own error message\n",
    )
    assert results[1] == (12, "")


@pytest.mark.slow
def test_ranks_that_leave_may_end_in_any_order(start: Start) -> None:
    ranks = start(3, 3, rank0="leave", rank1="leave", rank2="leave")
    assert ranks[1].stdout
    assert ranks[1].stdout.readline() == "left\n"
    ranks[1].kill()  # it has done its part
    assert [code for code, _ in ended(ranks)] in ([0, -9, 0], [0, 0, 0])


@pytest.mark.slow
def test_torchrun_s_end_is_its_ranks_end(tmp_path: Path) -> None:
    """Like torchrun, the parent starts a rank by this Python, and is then killed."""
    rank = "import time; import entrypoint; entrypoint.run(lambda: time.sleep(60))"
    parent = (
        "import subprocess, sys, time\n"
        f"print(subprocess.Popen([sys.executable, '-c', {rank!r}]).pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    path = tmp_path / "said"
    variables = {"LOCAL_RANK": "0", "TORCHELASTIC_RUN_ID": "none", "PYTHONPATH": str(ROOT)}
    with path.open("w") as file:
        torchrun = subprocess.Popen(
            [sys.executable, "-c", parent],
            env=os.environ | variables,
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
        )
    assert torchrun.stdout
    pid = int(torchrun.stdout.readline())
    time.sleep(1)
    assert Path(f"/proc/{pid}").exists()
    torchrun.kill()
    torchrun.wait()
    until = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and time.monotonic() < until:
        time.sleep(0.1)
    assert not Path(f"/proc/{pid}").exists()
    assert path.read_text() == "error: torchrun has ended, so its ranks exit\n"


def test_connections_without_the_secret_are_dropped(tmp_path: Path) -> None:
    """A connection without the secret is closed, and blocks no rank."""
    words = [str(tmp_path), "0", "2", "0", "2", "wait"]
    environment = os.environ | {"LOCAL_RANK": "0", "PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, WORKER, *words], env=environment, stdout=pipe, text=True
    ) as first:
        port, secret = FolderStore(tmp_path).get("presence").split()
        with socket.create_connection(("127.0.0.1", int(port))) as stranger:
            stranger.sendall(bytes(36))
            assert stranger.recv(1) == b""
        with socket.create_connection(("127.0.0.1", int(port))) as rank:
            rank.sendall(secret + (1).to_bytes(4))
            assert first.stdout
            assert first.stdout.readline() == "met\n"
        first.kill()


@pytest.mark.slow
def test_a_killed_rank_prevails_over_the_sigterm_that_follows_from_it(start: Start) -> None:
    ranks = start(2, 1)
    ranks[0].send_signal(signal.SIGSTOP)  # it notices both at once
    ranks[1].kill()
    ranks[1].wait()
    ranks[0].terminate()
    ranks[0].send_signal(signal.SIGCONT)
    code, output = ended(ranks)[0]
    assert code == EngineError.exit_code
    assert output.startswith("error: rank 1 of 2 (process of 1) died without an error message")


@pytest.mark.slow
def test_sigterm_to_all_is_reported_as_that(start: Start) -> None:
    ranks = start(3, 3)
    for one in reversed(ranks):
        one.terminate()
    results = ended(ranks)
    assert results[0] == (143, "terminated: what is finished is on disk\n")
    for code, output in results[1:]:  # by the signal, or by rank 0's end
        assert (code in (143, EngineError.exit_code), output) == (True, "")


@pytest.mark.slow
def test_a_rank_that_alone_gets_sigterm_is_named(start: Start) -> None:
    ranks = start(3, 3)
    ranks[2].terminate()
    results = ended(ranks)
    assert results[0] == (12, "error: rank 2 of 3 (process of 2) was ended by SIGTERM\n")
    assert results[1:] == [(12, ""), (143, "")]
