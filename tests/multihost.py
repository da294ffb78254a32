"""Hosts for tests: namespaces on a bridge, so that nothing works only because all is one machine.

Each host has its own address, host name, processes, `/tmp` and `/dev/shm`; the rest of the file
system is the same. Each has a second interface, to a network without a route to the others, and
finds its own name there or, as on Debian, at 127.0.1.1. Needs no root where users may create
namespaces.
"""

import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest

LAN, LONELY = "10.77.0.{}", "192.0.2.{}"  # addresses by a host's number from 1
NAMESPACES = ("--user", "--net", "--mount", "--uts", "--ipc", "--pid")
HOLD = "echo up; read -r _"  # until the test's process ends; a shell reaps what is orphaned
SWITCH = f"ip link add bridge type bridge && ip link set bridge up && {HOLD}"
# $1: the host's name; $2: its folder; the rest: folders under /tmp that it shares
HOST = f"""
set -e
mount --make-rprivate /
mount -t proc proc /proc
hostname "$1"
mount --bind "$2/hosts" /etc/hosts
for shared in "${{@:3}}"; do
  mkdir -p "$2/tmp/${{shared#/tmp/}}"
  mount --bind "$shared" "$2/tmp/${{shared#/tmp/}}"
done
mount --rbind "$2/tmp" /tmp
mount -t tmpfs tmpfs /dev/shm
{HOLD}
"""
UP = """
set -e
ip link set lo up
ip link add lonely type bridge
ip address add "$1/24" dev lonely
ip link set lonely up
ip address add "$2/24" dev lan
ip link set lan up
"""
GONE_S = 30  # for a run to end on all hosts after a process of it was killed on one


class Host:
    """One host. `tmp`, seen from outside, is what it has as `/tmp`."""

    def __init__(self, name: str, address: str, tmp: Path, init: int) -> None:
        self.name, self.address, self.tmp = name, address, tmp
        self._init = init  # the process that all its others descend from
        self._namespace = _namespace(init)

    def start(self, *words: object, **variables: str) -> subprocess.Popen[str]:
        """Start a command here, in this process's working directory."""
        return subprocess.Popen(
            [*_enter(self._init, *NAMESPACES), f"--wdns={Path.cwd()}", *map(str, words)],
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: object, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a command here to its end."""
        with self.start(*words, **variables) as process:
            out, err = process.communicate(timeout=300)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def processes(self) -> list[psutil.Process]:
        """What runs here."""
        return [
            one
            for one in psutil.process_iter()
            if one.pid != self._init and _namespace(one.pid) == self._namespace
        ]

    def shared_memory(self) -> list[str]:
        """The names of what is in its shared memory."""
        return sorted(path.name for path in Path(f"/proc/{self._init}/root/dev/shm").iterdir())


@contextmanager
def hosts(count: int, folder: Path, shared: Sequence[Path] = ()) -> Iterator[list[Host]]:
    """So many hosts, with their files under `folder`. They have the folders `shared`, of those
    that are under /tmp. Everything that runs on them ends with the context.

    Skips the test where namespaces are not allowed.
    """
    with ExitStack() as stack:
        switch = stack.enter_context(_holding("--user", "--map-root-user", "--net", script=SWITCH))
        built = []
        for number in range(count):
            name, place = f"host{number}", folder / f"host{number}"
            (place / "tmp").mkdir(parents=True)
            own = "127.0.1.1" if number % 2 else LONELY.format(number + 1)
            lines = [f"{LAN.format(other + 1)} host{other} all-hosts" for other in range(count)]
            lines[number] = f"{own} {name}\n{LAN.format(number + 1)} all-hosts"
            (place / "hosts").write_text("\n".join(["127.0.0.1 localhost", *lines, ""]))
            words = (name, str(place), *(str(one) for one in shared if one.is_relative_to("/tmp")))
            init = stack.enter_context(
                _holding(*NAMESPACES[1:], "--fork", script=HOST, words=words, inside=switch)
            )
            _call(
                *_enter(switch, "--user", "--net"),
                *("ip", "link", "add", f"port{number}", "master", "bridge", "up", "type", "veth"),
                *("peer", "name", "lan", "netns", str(init)),
            )
            addresses = LONELY.format(number + 1), LAN.format(number + 1)
            _call(*_enter(init, "--user", "--net"), "bash", "-c", UP, "up", *addresses)
            built.append(Host(name, addresses[1], place / "tmp", init))
        yield built


def wait_until_gone(several: Sequence[Host], limit_s: float = GONE_S) -> None:
    """Wait until nothing runs on any of the hosts. Fails the test after `limit_s` seconds."""
    until = time.monotonic() + limit_s
    while left := [process for host in several for process in host.processes()]:
        assert time.monotonic() < until, [process.cmdline() for process in left]
        time.sleep(0.1)


@contextmanager
def _holding(
    *namespaces: str, script: str, words: Sequence[str] = (), inside: int | None = None
) -> Iterator[int]:
    """New namespaces, in those of the process `inside`. Yields the process that holds them; what
    it starts ends with it."""
    enter = _enter(inside, "--user") if inside else []
    with subprocess.Popen(
        [*enter, "unshare", *namespaces, "bash", "-c", script, "hold", *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout
        assert holder.stderr
        if holder.stdout.readline() != "up\n":
            pytest.skip(f"namespaces are not allowed here: {holder.stderr.read().strip()}")
        forks = "--fork" in namespaces
        yield psutil.Process(holder.pid).children()[0].pid if forks else holder.pid
        holder.communicate()  # closes its input, at whose end it ends


def _enter(process: int, *namespaces: str) -> list[str]:
    return ["nsenter", f"--target={process}", "--preserve-credentials", *namespaces]


def _call(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, text=True)


def _namespace(process: int) -> str:
    """The namespace of a process's number; empty once it has ended."""
    try:
        return str(Path(f"/proc/{process}/ns/pid").readlink())
    except OSError:
        return ""
