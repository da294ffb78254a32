"""What each rank of test_presence runs: it meets the others by a store, and then waits or leaves.

    rank_presence.py STORE_PORT RANK WORLD FIRST_OF_MACHINE RANKS_OF_MACHINE DOES

`wait` is idle for a minute; `leave` leaves and then goes on for two seconds; `end` ends in words.
"""

import os
import sys
import time
from datetime import timedelta

import torch.distributed as dist

import entrypoint
from errors import CheckpointError
from ref_dsinfer.presence import Presence


def main() -> None:
    port, rank, world, first, count = map(int, sys.argv[1:6])
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    store = dist.TCPStore("127.0.0.1", port, timeout=timedelta(seconds=60))
    names = [f"process of {one}" for one in range(world)]
    presence = Presence(rank, range(first, first + count), names, store, 60)
    print("met", flush=True)
    sys.stdin.readline()  # once all have
    if sys.argv[6] == "leave":
        presence.leave()
        time.sleep(2)
        return
    if sys.argv[6] == "end":
        raise CheckpointError("a file is missing")
    time.sleep(60)


entrypoint.run(main)
