"""torchrun on several machines says whom it waits for, and gives up in one line after five minutes.

By itself it waits for a quarter of an hour in silence and ends in a traceback, before any script of
ours runs. setup.sh copies this folder into the environments. torchrun then finds `handler` by its
entry point, and its own static rendezvous is preceded by a meeting with names.
"""

import socket
import sys
import time
from datetime import timedelta
from typing import NoReturn

from torch.distributed import DistError, PrefixStore, Store, TCPStore
from torch.distributed.elastic.rendezvous import RendezvousInfo, static_tcp_rendezvous

NEWS_S = 20  # of waiting, before it is said for whom
TORCHRUNS_S, OURS_S = 900, 300  # until the end: torchrun's default, and what is taken in its place
LOOK_S = 0.2  # between two looks who is there
EXIT_CODE = 10  # of what was started in a way it can't work


class NamedRendezvous(static_tcp_rendezvous.StaticTCPRendezvous):
    """Meets the other machines first. Ends the process where some don't come."""

    def next_rendezvous(self) -> RendezvousInfo:
        if self.world_size > 1 and not self._store:
            self._store = self._met()
        return super().next_rendezvous()

    def _met(self) -> Store:
        limit = self.timeout.total_seconds()
        self._limit = OURS_S if limit == TORCHRUNS_S else limit
        self._began = time.monotonic()
        self._said = False
        if self.rank:
            self._await_first()
        tcp = self._connected()
        store = PrefixStore(self.run_id, tcp)
        store.set(f"node/{self.rank}", str(self.world_size))
        while missing := self._missing(store):
            self._wait(f"node {', '.join(map(str, missing))} of {self.world_size} to come")
        return tcp

    def _await_first(self) -> None:
        """Until the first machine answers; torch would fill the screen meanwhile."""
        address = self.master_addr, self.master_port
        while True:
            try:
                socket.create_connection(address, timeout=NEWS_S / 4).close()
                return
            except OSError as error:
                self._wait(f"node 0 of {self.world_size} at {self._place} ({error})")

    def _connected(self) -> TCPStore:
        """The first machine's store, which that one makes."""
        try:
            return TCPStore(
                self.master_addr,
                self.master_port,
                self.world_size,
                self.rank == 0,
                timedelta(seconds=max(self._limit - time.monotonic() + self._began, 1)),
                multi_tenant=True,
                wait_for_workers=self.rank != 0,  # the others only say that they are here
            )
        except DistError as error:
            reason = str(error).splitlines()[0]
            if "EADDRINUSE" in reason:
                reason = f"port {self.master_port} of this machine is taken (--master-port)"
            self._end(f"can't use node 0's store at {self._place}: {reason}")

    def _wait(self, what: str) -> None:
        """A moment, for `what`; say it once where it takes long, end where it takes too long."""
        waited = time.monotonic() - self._began
        if waited > self._limit:
            self._end(f"waited {waited:.0f} s for {what}; it must be started there too")
        if waited > NEWS_S and not self._said:
            self._said = True
            self._say(f"waiting for {what}; start the same command there with its own --node-rank")
        time.sleep(LOOK_S)

    def _missing(self, store: Store) -> list[int]:
        """The machines that are not there yet, by number; one whose torchrun lacks this module says
        later that it is."""
        missing = []
        for node in range(self.world_size):
            if store.check([f"node/{node}"]):
                count = int(store.get(f"node/{node}"))
                if count != self.world_size:
                    self._end(f"node {node} has --nnodes={count}, this one {self.world_size}")
            elif not store.check([f"torchelastic/role_info/{node}"]):
                missing.append(node)
        return missing

    @property
    def _place(self) -> str:
        return f"{self.master_addr}:{self.master_port}"

    def _say(self, what: str) -> None:
        print(f"torchrun: node {self.rank}: {what}", file=sys.stderr, flush=True)

    def _end(self, why: str) -> NoReturn:
        self._say(why)
        sys.exit(EXIT_CODE)


def handler() -> object:
    """Put the meeting before torchrun's default rendezvous; it also has a name of its own."""
    static_tcp_rendezvous.StaticTCPRendezvous = NamedRendezvous  # type: ignore[misc]
    return static_tcp_rendezvous.create_rdzv_handler
