"""Work in a process of its own, whose end and memory are known whatever happens in it."""

import os
import resource
import signal
from collections.abc import Callable

from errors import UserError

SECONDS = 20
MEGABYTES = 1000


def apart(work: Callable[[], str], seconds: int = SECONDS) -> tuple[str, int, int]:
    """Run in a process of its own: what it said, its exit code, and its peak memory in megabytes.

    What it returns is one line; anything but a UserError is its end, with code 99, and so is a
    signal.
    """
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(read)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(seconds)
            resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
            code = 0
            try:
                message = work()
            except UserError as error:
                message, code = str(error), error.exit_code
            except BaseException as error:  # noqa: BLE001 - told in the other process
                message, code = f"{type(error).__name__}: {error}"[:500], 99
            os.write(write, message.encode(errors="backslashreplace")[:4000])
        finally:
            os._exit(code)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        message = pipe.read().decode()
    _, status, used = os.wait4(child, 0)
    return message, os.waitstatus_to_exitcode(status), used.ru_maxrss >> 10
