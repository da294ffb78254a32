"""Run by each rank of test_presence: it meets the others at a store, and then waits or leaves.

    rank_presence.py STORE RANK WORLD FIRST_OF_MACHINE RANKS_OF_MACHINE DOES

STORE is a folder: torch's own store is for test_parallel, since importing torch takes most of the
time here. `wait` is idle for a minute; `leave` leaves and then goes on for two seconds; `end` ends
with an error.
"""

import sys
import time
from pathlib import Path

import entrypoint
from errors import CheckpointError
from ref_dsinfer.presence import Presence


class FolderStore:
    """A store whose values are files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def set(self, key: str, value: str, /) -> None:
        """Leave a value for all ranks."""
        (self._folder / f"{key}.new").write_text(value)
        (self._folder / f"{key}.new").rename(self._folder / key)

    def get(self, key: str, /) -> bytes:
        """Wait for a value."""
        while not (self._folder / key).exists():
            time.sleep(0.01)
        return (self._folder / key).read_bytes()


def main() -> None:
    rank, world, first, count = map(int, sys.argv[2:6])
    names = [f"process of {one}" for one in range(world)]
    store = FolderStore(Path(sys.argv[1]))
    presence = Presence(rank, range(first, first + count), names, store, 60, "127.0.0.1")
    print("met", flush=True)
    sys.stdin.readline()  # once all have
    if sys.argv[6] == "leave":
        presence.leave()
        print("left", flush=True)
        time.sleep(2)
        return
    if sys.argv[6] == "end":
        raise CheckpointError("a file is missing")
    time.sleep(60)


if __name__ == "__main__":
    entrypoint.run(main)
