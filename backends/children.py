"""An engine's own processes: their log is kept, and none of them outlives the run.

An engine may leave processes behind when it fails, or when its starter is killed; some change their
names and sessions. So a keeper (`backends/keeper.py`) holds one end of a pipe of which only we hold
the other, and kills what the engine has made once that closes.
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
MASK = b"-"  # in the place of a secret
NEWS_S = 30.0  # between two lines that say that an engine is still starting
# How engines end the story of a failure: "... ValueError: what was wrong"; what stands in brackets
# they have got over.
_CAUSE = re.compile(r"(?<!\()\b((?:\w+\.)*(?:\w+Error|\w*Exception): .+)")
_CRASH = re.compile(r"(Subprocess \S+ \(pid=\d+\) crashed with exit code -?\d+)")
_EFFECTS = (
    "Engine core initialization failed",
    "WorkerProc initialization failed",
    "KeyError: '/",  # multiprocessing's resource tracker: a semaphore that it has lost sight of
)


class Children:
    """The processes of one engine, from before the first is made until `close`.

    `log` is where they write; `folder`, a temporary directory, is theirs and goes with them.
    """

    def __init__(
        self, log: Path | None, shared: Sequence[str] = (), secret: str | None = None
    ) -> None:
        """`log` None: what they say is kept until `close` only.

        `shared`: how the names of files begin that they may leave in /dev/shm. `secret`: what they
        may say and nobody else is to read; nothing that is shown of the log holds it, nor does the
        log after `close`, and until then the log is its owner's alone.
        """
        self.folder = Path(tempfile.mkdtemp(prefix="mlperf-engine-"))
        self.log = log or self.folder / "engine.log"
        self._secret = secret
        self.log.unlink(missing_ok=True)  # else it keeps the rights, and readers, that it has
        self.log.touch(0o600 if secret else 0o666)
        self._keeper = subprocess.Popen(
            # isolated: beside it lies a types.py, which is not the standard library's
            [sys.executable, "-I", HERE / "keeper.py", str(os.getpid()), self.folder, *shared],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._keeper.stdout
        self._keeper.stdout.readline()  # it watches from now on

    def settled(self) -> None:
        """The engine has made its processes."""
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
        """Processes that multiprocessing spawns in here have this environment too, write to the
        log, and hear no Ctrl-C."""
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
        """`what` has happened, the reason that the log gives, and the log's end."""
        lines = self._lines()
        causes = [found[1] for line in lines if (found := _CAUSE.search(line))]
        causes = [cause for cause in causes if not any(effect in cause for effect in _EFFECTS)]
        causes = causes or [found[1] for line in lines if (found := _CRASH.search(line))]
        end = "".join(f"\n  | {line}" for line in lines[-TAIL_LINES:])
        reason = f": {causes[-1]}" if causes else ""
        return EngineError(f"{what}{reason}\n{self.log} ends with:{end or ' nothing'}")

    def said(self, words: str) -> bool:
        """Whether a line at the log's end holds these words."""
        return any(words in line for line in self._lines())

    @asynccontextmanager
    async def starting(self, engine: str) -> AsyncIterator[None]:
        """Say now and then how the start of `engine` goes on."""

        async def tell() -> None:
            spent = 0.0
            while True:
                await asyncio.sleep(NEWS_S)
                spent += NEWS_S
                last = self._lines()[-1:] or ["nothing yet"]
                log.info("%s is starting since %.0f s: %s", engine, spent, last[0])

        log.info("starting %s; its log is %s", engine, self.log)
        teller = asyncio.create_task(tell())
        try:
            yield
        finally:
            teller.cancel()

    def _lines(self) -> list[str]:
        """The end of the log, without empty lines."""
        with self.log.open("rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - TAIL_BYTES, 0))
            data = file.read()
        if self._secret:
            data = data.replace(self._secret.encode(), MASK)
        text = data.decode(errors="replace")
        return [line.rstrip() for line in re.split(r"[\r\n]+", text) if line.strip()]
