"""The start and end of every script: logging, signals, exit codes.

Exceptions become exit codes only here. Scripts import this module at the top and everything else
inside `main`, so that an interrupt during the imports prints one line instead of a traceback.
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
OPTIONAL = {"flashinfer": "install it with: pip install -r requirements/flashinfer.txt"}
INTERRUPTED, TERMINATED = 130, 143  # 128 + SIGINT or SIGTERM, as shells report it
IMPORT_S = 0.05  # between two checks whether an import has finished
LOOK_S = 1.0  # between two checks whether torchrun is running
FOLLOWER_GRACE_S = 10  # torchrun ends a machine's ranks well within this time after one has failed
ORPHANS_S = 4  # for local rank 0 to report that torchrun has ended
_stuck: list[str] = []  # what waits in native code and would keep the interpreter from exiting
# Called with the reason before a failure's exit, the last one first, as contexts end.
before_failing: list[Callable[[str], None]] = []
# Asked for the error that a SIGTERM follows from, if any.
causes_of_sigterm: list[Callable[[], UserError | None]] = []
_signals: list[int] = []  # SIGINT and SIGTERM that have arrived
_exit_lock = threading.Lock()  # taken by the one thread that reports why the process exits


class Terminated(KeyboardInterrupt):
    """SIGTERM has arrived: from a scheduler, a container's engine or torchrun.

    `cause`: the error that it follows from, if it is known.
    """

    def __init__(self, cause: UserError | None) -> None:
        super().__init__(str(cause or "terminated"))
        self.cause = cause


def run(main: Callable[[], None]) -> None:
    """Run an entry script's `main`, and exit with the exit code of the exception that it raises.

    SIGINT and SIGTERM end it as exceptions do. Ranks other than 0 end at once by SIGTERM: their
    main thread may be in native code.

    All local ranks but 0 wait before they report a user's error. If rank 0 has the same error, it
    is reported once and torchrun ends the others; otherwise it is reported after the wait.
    """
    terminal.guard()
    _watch_torchrun()
    rank = int(os.environ.get("RANK", "0"))
    logging.basicConfig(
        level=logging.WARNING if rank == 0 else logging.ERROR,  # ranks log the same warnings
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        datefmt="%H:%M:%S",
    )
    if rank == 0:
        for package in OURS:
            logging.getLogger(package).setLevel(logging.INFO)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # unless it is ignored
        for name in (signal.SIGINT, signal.SIGALRM):
            signal.signal(name, _interrupt)
    if rank == 0 and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        for name in (signal.SIGTERM, signal.SIGALRM):
            signal.signal(name, _interrupt)
    try:
        _with_packages(main)
        if _stuck:
            _exit_lock.acquire()
            _end(0, "")
    except UserError as error:
        if os.environ.get("LOCAL_RANK", "0") != "0":
            time.sleep(FOLLOWER_GRACE_S)
        fail(error)
    except Terminated as sigterm:
        if sigterm.cause:
            fail(sigterm.cause, despite_sigterm=True)
        _exit_lock.acquire()
        _stop(by_sigterm=True)
    except KeyboardInterrupt:
        _exit_lock.acquire()
        _stop(by_sigterm=False)
    except Exception:
        _exit_lock.acquire()
        logging.exception("internal error, please report it with this traceback")
        _end(1, "internal error")


def fail(error: UserError, quiet: bool = False, despite_sigterm: bool = False) -> NoReturn:
    """Print the error, unless `quiet`, and exit with its code, from any thread.

    After SIGTERM, it is the signal that is reported, since other processes have got it too; unless
    the signal followed from the error (`despite_sigterm`).
    """
    _exit_lock.acquire()
    if signal.SIGTERM in _signals and not despite_sigterm:
        _stop(by_sigterm=True)
    if not quiet:
        print(f"error: {error}", file=sys.stderr)
    _end(error.exit_code, str(error))


def exit_at_once(reason: str) -> None:
    """Exit without the interpreter's own clean-up once `run`'s main has returned.

    For native code that may never return, in whose way that clean-up might get.
    """
    logging.getLogger(__name__).warning("%s; the process will exit without that", reason)
    _stuck.append(reason)


def _stop(by_sigterm: bool) -> NoReturn:
    """Report a signal and exit."""
    reason = "terminated" if by_sigterm else "interrupted"
    print(f"{reason}: what is finished is on disk", file=sys.stderr)
    _end(TERMINATED if by_sigterm else INTERRUPTED, reason)


def _end(code: int, reason: str) -> NoReturn:
    """Exit by os._exit: after a failure, LoadGen or a collective may be waiting in native code
    forever, and no other way of exiting is certain to end its thread."""
    for stream in filter(None, (sys.stdout, sys.stderr)):  # None if it is closed
        stream.flush()
    try:
        for callback in [*reversed(before_failing)]:  # another thread may remove some meanwhile
            callback(reason)
    finally:
        os._exit(code)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt as soon as no import is running: for SIGINT, SIGTERM (as Terminated),
    and SIGALRM to retry.

    During an import it might be lost, or turn into an ImportError, since native modules (pyarrow's
    and numpy's among them) catch all exceptions when they are imported. Several signals during an
    import raise it once.
    """
    if number != signal.SIGALRM:
        _signals.append(number)
    caller = frame
    while caller and not caller.f_code.co_filename.startswith("<frozen importlib"):
        caller = caller.f_back
    signal.setitimer(signal.ITIMER_REAL, IMPORT_S if caller else 0)
    if not caller:
        if signal.SIGTERM not in _signals:
            raise KeyboardInterrupt
        raise Terminated(next(filter(None, (ask() for ask in [*causes_of_sigterm])), None))


def _with_packages(main: Callable[[], None]) -> None:
    """Run `main`. Raises: LaunchError for a package that is not installed.

    No other code handles that: the ImportError of a missing package always propagates to here.
    """
    try:
        main()
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in OURS:
            raise
        fix = OPTIONAL.get(
            package,
            "create and activate the backend's environment with: source setup.sh --backend NAME",
        )
        raise LaunchError(f"the Python package {package} is not installed: {fix}") from error


def _watch_torchrun() -> None:
    """Exit soon after torchrun does, if this process is one of its ranks.

    The parent's PID is polled: the kernel's parent-death signal is sent when the parent's thread
    ends, which may be long before its process does.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        threading.Thread(target=_wait_for_torchrun, args=(os.getppid(),), daemon=True).start()


def _wait_for_torchrun(parent: int) -> None:
    if parent != 1 or _is_launcher(parent):  # otherwise torchrun has ended already
        while os.getppid() == parent:
            time.sleep(LOOK_S)
    _without_torchrun()


def _is_launcher(process: int) -> bool:
    """Whether a process runs the same Python, as torchrun does; in a container it may be PID 1."""
    try:
        return os.path.samefile(f"/proc/{process}/exe", "/proc/self/exe")  # noqa: PTH121
    except OSError:  # another user's
        return False


def _without_torchrun() -> NoReturn:
    """Exit, as nothing else would end this rank. Local rank 0 reports it."""
    follows = os.environ.get("LOCAL_RANK", "0") != "0"
    if follows:
        time.sleep(ORPHANS_S)
    fail(LaunchError("torchrun has ended, so its ranks exit"), quiet=follows)
