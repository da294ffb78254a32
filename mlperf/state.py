"""Where a run is, in a small file for people and schedulers: `state.json` in its result folder.

The file is rewritten whole, every few seconds. A run that was killed leaves it as it was: its
`updated` gets old, and no process `pid` is left on `host`.
"""

import logging
import os
import threading
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import IO, Any, Literal, Self

import entrypoint
from data.lock import this_process
from errors import OutputError, UserError
from ref_dsinfer.files import write_json

log = logging.getLogger(__name__)

STATE = "state.json"
EVERY_S = 2.0  # between two updates

Name = Literal["starting", "running", "grading", "failed", "done"]


class RunState:
    """Keeps a run's state file up to date while it is open; an exception in it is a failure.

    Raises: OutputError if the file can't be written when it is opened. Later, that is a warning: it
    is no reason to end a run.
    """

    def __init__(
        self, folder: Path, reserve: IO[bytes], origins: Mapping[str, Any] | None = None
    ) -> None:
        """`reserve`: a file that is emptied when the disk is full. `origins`: where questions and
        tokenizer are, to show the answers of a run that does not finish."""
        self.process = this_process()  # which the state is of
        self._path = folder / STATE
        self._reserve = reserve
        self._content: dict[str, Any] = {
            "state": "starting",
            "finished": 0,
            "of": 0,  # samples; in the Server scenario LoadGen may issue more or fewer
            **self.process,
            "updated": None,
            "error": None,
            **(origins or {}),
        }
        self._lock = threading.Lock()
        self._over = threading.Event()

    def enter(self, state: Name, of: int | None = None) -> None:
        """The run has come to `state`; `of`: how many samples are expected."""
        with self._lock:
            self._content["state"] = state
            self._content["of"] = self._content["of"] if of is None else of
            self._update()

    def count(self) -> None:
        """One more sample is finished."""
        self._content["finished"] += 1

    def __enter__(self) -> Self:
        with self._lock:
            self._write()
        entrypoint.before_failing.append(self._fail)
        threading.Thread(target=self._keep, name="state", daemon=True).start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        entrypoint.before_failing.remove(self._fail)
        if error is None:
            self._end("done")
        elif isinstance(error, UserError | KeyboardInterrupt):
            self._fail(str(error) or "interrupted")
        else:
            self._fail(f"internal error: {type(error).__name__}: {error}")

    def _keep(self) -> None:
        while not self._over.wait(EVERY_S):
            with self._lock:
                if not self._over.is_set():
                    self._update()

    def _fail(self, reason: str) -> None:
        self._end("failed", reason)

    def _end(self, state: Name, reason: str | None = None) -> None:
        with self._lock:
            if self._over.is_set():
                return
            self._over.set()
            self._content |= {"state": state, "error": reason}
            self._update()

    def _update(self) -> None:
        try:
            try:
                self._write()
            except OutputError:
                os.ftruncate(self._reserve.fileno(), 0)
                self._write()
        except (OSError, OutputError) as error:
            log.warning("%s", error)

    def _write(self) -> None:
        self._content["updated"] = datetime.now().astimezone().isoformat(timespec="seconds")
        write_json(self._path, self._content)
