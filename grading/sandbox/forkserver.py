"""The grader's side of a fork server: starts it, requests processes, notices when it has ended."""

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

_EXIT_S = 0.5  # from closed sockets to the end of the server
START_S = 60.0  # for an interpreter and its imports on a busy machine
_ROOT = Path(__file__).resolve().parents[2]
# neither -m nor PYTHONPATH: the interpreter is isolated and finds only this package
_CODE = (
    f"import sys; sys.path.append({str(_ROOT)!r});"
    " from grading.sandbox.inside import forkserver; forkserver.serve()"
)


# The parent of working directories. At full a file system is mounted over it, which hides all that
# is below.
WORK = {"full": "/grading", "bwrap": "/tmp"}


class ForkServerGone(Exception):
    """The fork server has ended; a new one may work."""


class ForkServer:
    """A fork server that has imported one module. Thread-safe.

    Raises: SandboxError if it can't be started: an import fails, or the level is not available.
    """

    def __init__(self, module: str, level: str) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            task = {
                "module": module,
                "level": level,
                "owner": os.getpid(),  # shown in lists of processes
                "control": theirs.fileno(),
                "root": str(_ROOT),
                "packages": _packages(),
                "readable": _readable(),
                "work": WORK.get(level) or tempfile.gettempdir(),
            }
            flags = ["-I", "-S", "-B", "-X", "utf8", "-c", _CODE, json.dumps(task)]
            wrapper = _bubblewrap() if level == "bwrap" else []
            with tempfile.TemporaryFile() as errors:
                self._process = self._run([*wrapper, sys.executable, *flags], theirs, errors)
                theirs.close()
                failure = self._failure(errors)
        if failure:
            self.close()
            raise SandboxError(f"the grading processes' fork server can't be started: {failure}")

    def _run(
        self, command: list[str], control: socket.socket, errors: IO[bytes]
    ) -> subprocess.Popen[bytes]:
        try:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                pass_fds=[control.fileno()],
                cwd="/",
                env=_environment(),
                start_new_session=True,
            )
        except OSError as error:
            self._control.close()
            raise SandboxError(
                f"the grading processes' fork server can't be started: {error}"
            ) from error

    def _failure(self, errors: IO[bytes]) -> str | None:
        """Why the server failed to start: its own message, or the last line of its output."""
        self._control.settimeout(START_S)
        try:
            ready = self._control.recv(1 << 16)
        except OSError as error:
            return str(error)
        if ready:
            failure: str | None = json.loads(ready).get("failed")
            return failure
        errors.seek(0)
        text = errors.read().decode(errors="replace").strip() or "it ended at once"
        return text.split("\n")[-1]

    def fork(self, limits: Limits, descriptors: list[int]) -> None:
        """Request a process. `descriptors`: its socket, lifeline, standard input and output.

        Raises: ForkServerGone.
        """
        try:
            socket.send_fds(self._control, [json.dumps(asdict(limits)).encode()], descriptors)
        except OSError as error:
            raise ForkServerGone from error

    @property
    def is_running(self) -> bool:
        """Whether the server is running, and not about to end."""
        try:
            self._process.wait(_EXIT_S)
        except subprocess.TimeoutExpired:
            return True
        return False

    def close(self) -> None:
        """End the server; the processes that it started run until they are closed."""
        self._control.close()
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()


def _packages() -> list[str]:
    return [path for path in sys.path if path.endswith("-packages")]


def _environment() -> Mapping[str, str]:
    one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    if libraries := os.environ.get("LD_LIBRARY_PATH"):
        return {"LD_LIBRARY_PATH": libraries, **one_thread}
    return one_thread


@functools.cache
def _readable() -> list[str]:
    """The paths that an interpreter and its packages may have to read."""
    libraries = [
        *(sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), f"{sys.base_prefix}/lib"),
        *("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache"),
        *os.environ.get("LD_LIBRARY_PATH", "").split(":"),
    ]
    system = ["/usr/share/zoneinfo", "/etc/localtime", "/sys/devices/system/cpu"]
    names = dict.fromkeys([*libraries, *_packages(), *system])
    return [name for name in names if name.startswith("/") and Path(name).exists()]


def _bubblewrap() -> list[str]:
    """The start of a command line that runs another one in bubblewrap, with readable paths only.

    Raises: SandboxError if bubblewrap is not installed.
    """
    if not (executable := shutil.which("bwrap")):
        raise SandboxError("bubblewrap (the command bwrap) is not installed")
    python = [str(Path(sys.executable).parent), str(Path(sys.executable).resolve().parent)]
    ours = [str(_ROOT / name) for name in ("grading", "terminal.py")]
    binds = [word for path in (*_readable(), *python, *ours) for word in ("--ro-bind", path, path)]
    return [
        *(executable, "--unshare-all", "--hostname", "sandbox", "--cap-drop", "ALL"),
        *("--tmpfs", "/tmp", "--proc", "/proc", "--dev", "/dev", *binds, "--chdir", "/", "--"),
    ]
