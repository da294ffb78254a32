"""Every way a user's input can end a run: one class, one exit code.

The module lies in the bottom package so that every other one may raise these. An exception becomes
an exit code in `run` only, or from another thread in `fail`; one that is not a `UserError` is a
fault of ours and keeps its traceback.
"""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import ClassVar, NoReturn

from ref_dsinfer import terminal
from ref_dsinfer.parent import watch_torchrun

INTERRUPTED = 130  # 128 + SIGINT, as shells report it


class UserError(Exception):
    """Something the user can mend. The message names the file or value and the fix, in one line."""

    exit_code: ClassVar[int]


class UsageError(UserError):
    """An option has a value that can't be used (argparse ends with the same code)."""

    exit_code = 2


class InputFileError(UserError):
    """An input file is missing, of another type than it should be, or not a data frame."""

    exit_code = 3


class ColumnsError(UserError):
    """A data frame lacks columns, or a column holds values of the wrong kind."""

    exit_code = 4


class EmptyDataError(UserError):
    """A data set or result file has no rows."""

    exit_code = 5


class ModelError(UserError):
    """A model directory has no configuration, or one of another architecture."""

    exit_code = 6


class CheckpointError(UserError):
    """A weight file is missing, incomplete, or made for another world size."""

    exit_code = 7


class LengthError(UserError):
    """A prompt does not fit the model's length."""

    exit_code = 8


class ParallelError(UserError):
    """The model can't be split over this number of processes."""

    exit_code = 9


class LaunchError(UserError):
    """A script was started in a way it can't work, e.g. without torchrun."""

    exit_code = 10


class OutputError(UserError):
    """Results can't be written where they were asked for."""

    exit_code = 11


class EngineError(UserError):
    """An engine failed to start, or a request failed in it."""

    exit_code = 12


class GradingError(UserError):
    """Answers can't be graded: problems or a sandbox are missing, or rows don't match."""

    exit_code = 13


class LoadGenError(UserError):
    """LoadGen could not be configured, or ended the run as invalid."""

    exit_code = 14


OURS = ("backends", "data", "mlperf", "ref_dsinfer")
IMPORT_S = 0.05  # between two looks whether an import is over
FOLLOWER_GRACE_S = 10  # torchrun ends a machine's other ranks well within this once one has failed
ORPHANS_S = 4  # for the first rank of a machine to say that torchrun is gone
before_failing: list[Callable[[], None]] = []  # what others have to be told then
_last_word = threading.Lock()  # of the thread that says why the process ends


def run(main: Callable[[], None]) -> None:
    """Run an entry script's `main` and end the process with the exit code of what it raised.

    Of a machine's ranks all but the first hold a user's error back for a moment: where the first
    met the same one, it is said once, and torchrun ends the others; where it did not, the message
    still comes out.
    """
    terminal.guard()
    watch_torchrun(_without_torchrun)
    rank = int(os.environ.get("RANK", "0"))
    logging.basicConfig(
        level=logging.WARNING if rank == 0 else logging.ERROR,  # what all ranks say is said once
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        datefmt="%H:%M:%S",
    )
    if rank == 0:
        for package in OURS:
            logging.getLogger(package).setLevel(logging.INFO)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # it may be ignored
        for name in (signal.SIGINT, signal.SIGALRM):
            signal.signal(name, _interrupt)
    try:
        _with_packages(main)
    except UserError as error:
        if os.environ.get("LOCAL_RANK", "0") != "0":
            time.sleep(FOLLOWER_GRACE_S)
        fail(error)
    except KeyboardInterrupt:
        _last_word.acquire()
        print("interrupted: finished samples are on disk", file=sys.stderr)
        _end(INTERRUPTED)
    except Exception:
        _last_word.acquire()
        logging.exception("internal error, please report it with this traceback")
        _end(1)


def fail(error: UserError) -> NoReturn:
    """Say what is wrong, and end the process; from any thread."""
    _last_word.acquire()
    print(f"error: {error}", file=sys.stderr)
    _end(error.exit_code)


def _without_torchrun() -> NoReturn:
    """End a rank that nobody would end any more; the first of a machine's says so."""
    if os.environ.get("LOCAL_RANK", "0") != "0":
        time.sleep(ORPHANS_S)
        _end(LaunchError.exit_code)
    fail(LaunchError("torchrun is gone, so its ranks end"))


def _end(code: int) -> NoReturn:
    """A failed run may leave LoadGen or a collective waiting in native code for ever; only os._exit
    is sure to end those threads."""
    for stream in filter(None, (sys.stdout, sys.stderr)):  # None where it is closed
        stream.flush()
    for tell in before_failing:
        tell()
    os._exit(code)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, once no import is under way; for SIGINT, and to look again SIGALRM.

    Amid one it may be lost, or come out as a failed import: much native code (pyarrow's and numpy's
    among it) handles every exception while it imports. However often it is asked for meanwhile, it
    is raised once.
    """
    caller = frame
    while caller and not caller.f_code.co_filename.startswith("<frozen importlib"):
        caller = caller.f_back
    signal.setitimer(signal.ITIMER_REAL, IMPORT_S if caller else 0)
    if not caller:
        signal.default_int_handler(number, frame)


def _with_packages(main: Callable[[], None]) -> None:
    """Run `main`; a package that is missing is a matter of the environment, not a fault of ours."""
    try:
        main()
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in OURS:
            raise
        raise LaunchError(
            f"the Python package {package} is not installed: make and activate the environment"
            " with: source setup.sh"
        ) from error
