"""What every script starts with: logging, signals, and how a run ends.

An exception becomes an exit code here and nowhere else, and an interrupt amid an import is a line.
Scripts import this at their top, and all else inside `main`.
"""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

import terminal
from errors import LaunchError, UserError

OURS = ("backends", "data", "grading", "mlperf", "ref_dsinfer")
INTERRUPTED = 130  # 128 + SIGINT, as shells report it
IMPORT_S = 0.05  # between two looks whether an import is over
LOOK_S = 1.0  # between two looks whether torchrun is there
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
    _watch_torchrun()
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
    """Run `main`; a missing package is a matter of the environment, not a fault of ours.

    Nobody else catches this: an import of what is not installed comes up to here.
    """
    try:
        main()
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in OURS:
            raise
        raise LaunchError(
            f"the Python package {package} is not installed: make and activate the backend's"
            " environment with: source setup.sh --backend NAME"
        ) from error


def _watch_torchrun() -> None:
    """From now on, end soon after the parent of this process has; for torchrun's ranks only, since
    others may outlive theirs.

    The parent's number is looked at: a signal by the kernel would come at the end of the thread
    that has started us, not of its process.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        threading.Thread(target=_outlast, args=(os.getppid(),), daemon=True).start()


def _outlast(parent: int) -> None:
    if parent != 1 or _is_launcher(parent):  # else it was gone before we could look
        while os.getppid() == parent:
            time.sleep(LOOK_S)
    _without_torchrun()


def _is_launcher(process: int) -> bool:
    """Whether it runs the same Python, as torchrun does; in a container it may be number 1."""
    try:
        return os.path.samefile(f"/proc/{process}/exe", "/proc/self/exe")  # noqa: PTH121
    except OSError:  # another user's
        return False


def _without_torchrun() -> NoReturn:
    """End a rank that nobody would end any more; the first of a machine's says so."""
    if os.environ.get("LOCAL_RANK", "0") != "0":
        time.sleep(ORPHANS_S)
        _end(LaunchError.exit_code)
    fail(LaunchError("torchrun is gone, so its ranks end"))
