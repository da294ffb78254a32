"""Notices that torchrun is gone: killed, it can't end its ranks by itself."""

import os
import threading
import time
from collections.abc import Callable

LOOK_S = 1.0  # between two looks


def watch_torchrun(gone: Callable[[], None]) -> None:
    """From now on, call `gone` from another thread soon after the parent of this process has ended;
    for torchrun's ranks only, since others may outlive theirs.

    The parent's number is looked at: a signal by the kernel would come at the end of the thread
    that has started us, not of its process.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        threading.Thread(target=_watch, args=(os.getppid(), gone), daemon=True).start()


def _watch(parent: int, gone: Callable[[], None]) -> None:
    if parent != 1 or _is_launcher(parent):  # else it was gone before we could look
        while os.getppid() == parent:
            time.sleep(LOOK_S)
    gone()


def _is_launcher(process: int) -> bool:
    """Whether it runs the same Python, as torchrun does; in a container it may be number 1."""
    try:
        return os.path.samefile(f"/proc/{process}/exe", "/proc/self/exe")  # noqa: PTH121
    except OSError:  # another user's
        return False
