"""Run attacks of `programs` in one sandbox and print the outcomes as JSON.

Started by its path, as any user, with a level and the names of attacks, in a temporary directory
of its own (`TMPDIR`); only the standard library is needed. Printed: the level, why, and for each
attack whether it got through and what of the host it has changed; and whether the run goes on.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from grading.sandbox.sandbox import Sandbox
from grading.tasks.livecodebench import Case, Problem, passes
from tests.grading.sandbox.attacks import programs

GOOD = "def f(t):\n    return t['port'] + 1\n"
SECONDS = {"signals_blocked": 0.5, "kill_all": 2.0, "fork_bomb": 2.0, "sleeping_child": 0.5}


class Host:
    """The targets of attacks, in a directory of their own; `changes` names what attacks changed."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.secret, self.victim = self.folder / "secret", self.folder / "victim"
        for path in (self.secret, self.victim):
            path.write_text("unharmed")
            path.chmod(0o600)
            os.utime(path, (1000, 1000))
        self.inherited = os.open(self.secret, os.O_RDONLY)
        os.set_inheritable(self.inherited, True)
        self.sockets = {}
        name = f"attack-{os.getpid()}-{self.folder.name}"
        for kind, family, way, address in (
            ("port", socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)),
            ("udp", socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0)),
            ("socket", socket.AF_UNIX, socket.SOCK_STREAM, f"{folder}/socket"),
            ("datagram", socket.AF_UNIX, socket.SOCK_DGRAM, f"{folder}/datagram"),
            ("abstract", socket.AF_UNIX, socket.SOCK_STREAM, "\0" + name),
        ):
            self.sockets[kind] = one = socket.socket(family, way)
            one.bind(address)
            one.setblocking(False)
            if way == socket.SOCK_STREAM:
                one.listen()
        self.process = subprocess.Popen(["sleep", "600"])
        self.target = {
            "folder": str(folder),
            "secret": str(self.secret),
            "victim": str(self.victim),
            "inherited": self.inherited,
            "runner": os.getpid(),
            "pid": self.process.pid,
            "port": self.sockets["port"].getsockname()[1],
            "udp": self.sockets["udp"].getsockname()[1],
            "socket": f"{folder}/socket",
            "datagram": f"{folder}/datagram",
            "abstract": name,
            "touch": f"open({str(self.folder / 'touched')!r}, 'w')",
        }
        self.before = self.state()

    def state(self) -> dict[str, object]:
        """Everything that an attack might change, by name."""
        state: dict[str, object] = {
            "files": [
                (path.name, path.lstat().st_mode, path.lstat().st_mtime, path.lstat().st_uid)
                for path in sorted(self.folder.glob("*"))
            ],
            "process": _state(self.process.pid),
            "library": (Path(os.__file__).stat().st_mode, Path(os.__file__).stat().st_size),
            "name of the host": socket.gethostname(),
            "clock": round((time.time() - time.monotonic()) / 5),
            "shared memory": list(Path("/dev/shm").glob("attack-*")),
            "left over": _left_over(),
        }
        for kind in ("shm", "sem", "msg"):
            state[kind] = len(Path(f"/proc/sysvipc/{kind}").read_text().splitlines())
        for kind, one in self.sockets.items():
            with contextlib.suppress(BlockingIOError):
                one.recv(9) if kind in ("udp", "datagram") else one.accept()[0].close()
                state[f"reached: {kind}"] = True
        return state

    def changes(self) -> list[str]:
        """Names of the state that has changed."""
        now = self.state()
        return [name for name, value in now.items() if self.before.get(name) != value]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.inherited)
        for one in self.sockets.values():
            one.close()


def _state(pid: int) -> str:
    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return "alive" if state in "SDR" else state


def _left_over() -> tuple[int, int]:
    """How many processes this run's sandbox has, its server included, and working directories."""
    mine, servers = f'"owner": {os.getpid()},'.encode(), 0
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            servers += mine in line.read_bytes()
    return servers, len(list(Path(tempfile.gettempdir()).glob("grade-*")))


def main() -> None:
    level, names = sys.argv[1], sys.argv[2:]
    with Sandbox(level) as sandbox:
        outcomes: dict[str, dict] = {}
        result: dict[str, object] = {
            "level": sandbox.level,
            "reason": sandbox.reason,
            "outcomes": outcomes,
        }
        good = Problem("good", "f", [Case('{"port": 1}', "2")])
        for name in names if sandbox.level else ():
            if not outcomes:  # and so that the server runs before the state of the host is taken
                assert passes(GOOD, good, sandbox, 20).right
            with tempfile.TemporaryDirectory(
                prefix="attack-", ignore_cleanup_errors=True
            ) as folder:
                host = Host(folder)
                attack = Problem(name, "f", [Case(json.dumps(host.target), '"bitten"')])
                code = programs.program(programs.BODIES[name])
                verdict = passes(code, attack, sandbox, SECONDS.get(name, 10))
                outcomes[name] = {
                    "bitten": verdict.right,
                    "rule": verdict.rule,
                    "changes": host.changes(),
                }
                host.close()
        result["goes on"] = passes(GOOD, good, sandbox, 20).right
    print(json.dumps(result))


if __name__ == "__main__":
    main()
