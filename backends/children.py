"""An engine's own processes: keeps their log, and lets none of them outlive the run.

An engine may leave processes behind when it fails, or when the process that started it is killed;
some change their names and sessions. So a keeper (`backends/keeper.py`) holds one end of a pipe
whose other end only this process holds, and kills the engine's processes once that closes.
"""

import asyncio
import logging
import multiprocessing.spawn
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from errors import EngineError

log = logging.getLogger(__name__)

HERE = Path(__file__).parent
TAIL_LINES = 12  # of the log, shown when an engine fails
TAIL_BYTES = 1 << 16
MASK = b"-"  # replaces a secret
PROGRESS_S = 30.0  # between log lines while an engine is starting
# How engines report a failure: "... ValueError: what was wrong". Errors in brackets were handled.
_CAUSE = re.compile(r"(?<!\()\b((?:\w+\.)*(?:\w+Error|\w*Exception): .+)")
_CRASH = re.compile(r"(Subprocess \S+ \(pid=\d+\) crashed with exit code -?\d+)")
_EFFECTS = (
    "Engine core initialization failed",
    "WorkerProc initialization failed",
    "'NoneType' object has no attribute 'decode'",  # SGLang's report of requests at its crash
    "KeyError: '/",  # multiprocessing's resource tracker: a semaphore that it does not know
)


class Children:
    """The processes of one engine, from before the first is started until `close`.

    They write to `log`; `folder`, a temporary directory, is removed with them.
    """

    def __init__(
        self, log: Path | None, shared: Sequence[str] = (), secret: str | None = None
    ) -> None:
        """`log` None: it is kept until `close` only.

        `shared`: name prefixes of files that they may leave in /dev/shm. `secret`: masked wherever
        the log is quoted, and in the log itself after `close`; until then only its owner can read
        the log.
        """
        self.folder = Path(tempfile.mkdtemp(prefix="mlperf-engine-"))
        self.log = log or self.folder / "engine.log"
        self._secret = secret
        self.log.unlink(missing_ok=True)  # else it keeps its permissions and open readers
        self.log.touch(0o600 if secret else 0o666)
        self._keeper = subprocess.Popen(
            # isolated: the types.py beside it would hide the standard library's
            [sys.executable, "-I", HERE / "keeper.py", str(os.getpid()), self.folder, *shared],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._keeper.stdout
        self._keeper.stdout.readline()  # it is watching from now on

    def started(self) -> None:
        """Tell the keeper that the engine has started all its processes."""
        assert self._keeper.stdin
        self._keeper.stdin.write(b".")
        self._keeper.stdin.flush()

    def close(self) -> None:
        """Kill what is left of the engine. Safe to call twice."""
        self._keeper.communicate()
        if self._secret and self.log.exists():
            self.log.write_bytes(self.log.read_bytes().replace(self._secret.encode(), MASK))

    @contextmanager
    def spawning(self, **environment: str) -> Iterator[None]:
        """Processes that multiprocessing spawns in this context get `environment` too, write to
        the log, and do not receive Ctrl-C."""
        environment["MLPERF_ENGINE_PYTHON"] = sys.executable
        environment["MLPERF_ENGINE_LOG"] = str(self.log.absolute())
        python = multiprocessing.spawn.get_executable()
        before = {name: os.environ.get(name) for name in environment}
        multiprocessing.spawn.set_executable(str(HERE / "into_log.sh"))
        os.environ |= environment
        try:
            yield
        finally:
            multiprocessing.spawn.set_executable(python)
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value

    def failure(self, what: str) -> EngineError:
        """An error: `what` happened, the cause found in the log, and the log's last lines."""
        lines = self._lines()
        causes = [match[1] for line in lines if (match := _CAUSE.search(line))]
        causes = [cause for cause in causes if not any(effect in cause for effect in _EFFECTS)]
        causes = causes or [match[1] for line in lines if (match := _CRASH.search(line))]
        end = "".join(f"\n  | {line}" for line in lines[-TAIL_LINES:])
        reason = f": {causes[-1]}" if causes else ""
        return EngineError(f"{what}{reason}\n{self.log} ends with:{end or ' nothing'}")

    def log_contains(self, words: str) -> bool:
        """Whether one of the log's last lines contains `words`."""
        return any(words in line for line in self._lines())

    @asynccontextmanager
    async def starting(self, engine: str) -> AsyncIterator[None]:
        """Log the progress of `engine`'s start from time to time."""

        async def report() -> None:
            seconds = 0.0
            while True:
                await asyncio.sleep(PROGRESS_S)
                seconds += PROGRESS_S
                last = self._lines()[-1:] or ["nothing yet"]
                log.info("%s has been starting for %.0f s: %s", engine, seconds, last[0])

        log.info("starting %s; its log is %s", engine, self.log)
        reporter = asyncio.create_task(report())
        try:
            yield
        finally:
            reporter.cancel()

    def _lines(self) -> list[str]:
        """The log's last lines, without empty ones."""
        with self.log.open("rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - TAIL_BYTES, 0))
            data = file.read()
        if self._secret:
            data = data.replace(self._secret.encode(), MASK)
        text = data.decode(errors="replace")
        return [line.rstrip() for line in re.split(r"[\r\n]+", text) if line.strip()]
