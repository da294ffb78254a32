"""The grader's side of a fork server: starts it, asks it for processes, notices when it is gone."""

import contextlib
import functools
import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import IO

from grading.sandbox.inside.limits import Limits
from grading.sandbox.types import SandboxError

_ENDS_S = 0.5  # from the end of its sockets to its own
START_S = 60.0  # an interpreter and its imports, on a machine that is busy
_ROOT = Path(__file__).resolve().parents[2]
# no -m and no PYTHONPATH: an isolated interpreter that finds this package and nothing else
_CODE = (
    f"import sys; sys.path.append({str(_ROOT)!r});"
    " from grading.sandbox.inside import forkserver; forkserver.serve()"
)


# Where working directories lie: at full the place is covered, so nothing readable may lie there.
WORK = {"full": "/grading", "bwrap": "/tmp"}


class HostGone(Exception):
    """The server has ended; a new one may do."""


class Host:
    """A fork server of one module. May be asked in any thread.

    Raises: SandboxError if it can't be started: an import fails, or the level can't be had.
    """

    def __init__(self, module: str, level: str) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            task = {
                "module": module,
                "level": level,
                "owner": os.getpid(),  # for whoever reads a list of processes
                "control": theirs.fileno(),
                "root": str(_ROOT),
                "packages": _packages(),
                "readable": _readable(),
                "work": WORK.get(level) or tempfile.gettempdir(),
            }
            flags = ["-I", "-S", "-B", "-X", "utf8", "-c", _CODE, json.dumps(task)]
            wrapper = _bubblewrap() if level == "bwrap" else []
            with tempfile.TemporaryFile() as said:
                self._process = self._run([*wrapper, sys.executable, *flags], theirs, said)
                theirs.close()
                fault = self._fault(said)
        if fault:
            self.close()
            raise SandboxError(f"a process to grade in can't be started: {fault}")

    def _run(
        self, command: list[str], control: socket.socket, said: IO[bytes]
    ) -> subprocess.Popen[bytes]:
        try:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=said,
                pass_fds=[control.fileno()],
                cwd="/",
                env=_environment(),
                start_new_session=True,
            )
        except OSError as error:
            self._control.close()
            raise SandboxError(f"a process to grade in can't be started: {error}") from error

    def _fault(self, said: IO[bytes]) -> str | None:
        """Why the server does not serve, if it does not: its word, or the last it wrote."""
        self._control.settimeout(START_S)
        try:
            ready = self._control.recv(1 << 16)
        except OSError as error:
            return str(error)
        if ready:
            fault: str | None = json.loads(ready).get("failed")
            return fault
        said.seek(0)
        return (said.read().decode(errors="replace").strip() or "it ended at once").split("\n")[-1]

    def fork(self, limits: Limits, descriptors: list[int]) -> None:
        """Ask for a process. `descriptors`: its socket and lifeline, standard input and output.

        Raises: HostGone.
        """
        try:
            socket.send_fds(self._control, [json.dumps(asdict(limits)).encode()], descriptors)
        except OSError as error:
            raise HostGone from error

    @property
    def runs(self) -> bool:
        """Whether the server is still there, and not just about to be gone."""
        try:
            self._process.wait(_ENDS_S)
        except subprocess.TimeoutExpired:
            return True
        return False

    def close(self) -> None:
        """End the server; processes it has started live on until they are closed."""
        self._control.close()
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()


def _packages() -> list[str]:
    return [path for path in sys.path if path.endswith("-packages")]


def _environment() -> Mapping[str, str]:
    kept = {"LD_LIBRARY_PATH": os.environ.get("LD_LIBRARY_PATH", "")}
    one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return {name: value for name, value in {**kept, **one_thread}.items() if value}


@functools.cache
def _readable() -> list[str]:
    """What an interpreter and its packages may have to open once they run."""
    libraries = [
        *(sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), f"{sys.base_prefix}/lib"),
        *("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache"),
        *os.environ.get("LD_LIBRARY_PATH", "").split(":"),
    ]
    facts = ["/usr/share/zoneinfo", "/etc/localtime", "/sys/devices/system/cpu"]
    names = dict.fromkeys([*libraries, *_packages(), *facts])
    return [name for name in names if name.startswith("/") and Path(name).exists()]


def _bubblewrap() -> list[str]:
    """A command line that runs another one with what it reads, and nothing else of the machine.

    Raises: SandboxError if there is no bubblewrap.
    """
    if not (found := shutil.which("bwrap")):
        raise SandboxError("bubblewrap is not installed")
    binary = [str(Path(sys.executable).parent), str(Path(sys.executable).resolve().parent)]
    ours = [str(_ROOT / name) for name in ("grading", "terminal.py")]
    shown = [word for path in (*_readable(), *binary, *ours) for word in ("--ro-bind", path, path)]
    return [
        *(found, "--unshare-all", "--hostname", "sandbox", "--cap-drop", "ALL"),
        *("--tmpfs", "/tmp", "--proc", "/proc", "--dev", "/dev", *shown, "--chdir", "/", "--"),
    ]
