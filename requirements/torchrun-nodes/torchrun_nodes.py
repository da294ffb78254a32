"""Makes torchrun on several machines name the missing nodes, and exit after five minutes.

It also keeps torchrun from warning that it sets OMP_NUM_THREADS to 1: the engine sets the number of
threads itself.

torchrun alone waits for 15 minutes without output and ends in a traceback, before any script of
ours runs. setup.sh copies this directory into the environments, where torchrun finds `handler` by
its entry point. torchrun's static rendezvous is then preceded by one that knows the nodes' numbers.
"""

import logging
import socket
import sys
import time
from datetime import timedelta
from typing import NoReturn

from torch.distributed import DistError, PrefixStore, Store, TCPStore
from torch.distributed.elastic.rendezvous import RendezvousInfo, static_tcp_rendezvous

WARN_AFTER_S = 20  # of waiting, before the missing nodes are printed
TORCHRUN_TIMEOUT_S, TIMEOUT_S = 900, 300  # torchrun's default, and what replaces it
POLL_S = 0.2
EXIT_CODE = 10  # as of errors.LaunchError


class NamedRendezvous(static_tcp_rendezvous.StaticTCPRendezvous):
    """Waits for the other nodes before torchrun's rendezvous; exits if some don't join in time."""

    def next_rendezvous(self) -> RendezvousInfo:
        if self.world_size > 1 and not self._store:
            self._store = self._join()
        return super().next_rendezvous()

    def _join(self) -> Store:
        """Node 0's store, once all nodes have joined."""
        timeout_s = self.timeout.total_seconds()
        self._timeout_s = TIMEOUT_S if timeout_s == TORCHRUN_TIMEOUT_S else timeout_s
        self._start_s = time.monotonic()
        self._warned = False
        if self.rank:
            self._wait_for_node_0()
        tcp_store = self._connect()
        store = PrefixStore(self.run_id, tcp_store)
        store.set(f"node/{self.rank}", str(self.world_size))
        while missing := self._missing(store):
            self._wait(f"node {', '.join(map(str, missing))} of {self.world_size} to join")
        return tcp_store

    def _wait_for_node_0(self) -> None:
        """Wait until its port accepts connections; torch would print a warning per attempt."""
        address = self.master_addr, self.master_port
        while True:
            try:
                socket.create_connection(address, timeout=WARN_AFTER_S / 4).close()
                return
            except OSError as error:
                self._wait(f"node 0 of {self.world_size} at {self._address} ({error})")

    def _connect(self) -> TCPStore:
        """Node 0's store, which node 0 itself creates here."""
        try:
            return TCPStore(
                self.master_addr,
                self.master_port,
                self.world_size,
                self.rank == 0,
                timedelta(seconds=max(self._timeout_s - time.monotonic() + self._start_s, 1)),
                multi_tenant=True,
                wait_for_workers=self.rank != 0,  # which for other nodes only registers them
            )
        except DistError as error:
            reason = str(error).splitlines()[0]
            if "EADDRINUSE" in reason:
                reason = f"port {self.master_port} of this machine is taken (--master-port)"
            self._fail(f"can't use node 0's store at {self._address}: {reason}")

    def _wait(self, event: str) -> None:
        """Sleep for a moment. Prints `event` once if it takes long; exits if it takes too long."""
        waited_s = time.monotonic() - self._start_s
        if waited_s > self._timeout_s:
            self._fail(f"waited {waited_s:.0f} s for {event}; start the same command there too")
        if waited_s > WARN_AFTER_S and not self._warned:
            self._warned = True
            self._print(f"waiting for {event}; start the same command there with its --node-rank")
        time.sleep(POLL_S)

    def _missing(self, store: Store) -> list[int]:
        """Numbers of the nodes that have not joined.

        A node whose environment lacks this module joins later, in torchrun's own rendezvous.
        """
        missing = []
        for node in range(self.world_size):
            if store.check([f"node/{node}"]):
                count = int(store.get(f"node/{node}"))
                if count != self.world_size:
                    self._fail(f"node {node} has --nnodes={count}, this one {self.world_size}")
            elif not store.check([f"torchelastic/role_info/{node}"]):
                missing.append(node)
        return missing

    @property
    def _address(self) -> str:
        return f"{self.master_addr}:{self.master_port}"

    def _print(self, message: str) -> None:
        print(f"torchrun: node {self.rank}: {message}", file=sys.stderr, flush=True)

    def _fail(self, reason: str) -> NoReturn:
        self._print(reason)
        sys.exit(EXIT_CODE)


def handler() -> object:
    """Replace torchrun's default rendezvous. `--rdzv-backend torchrun_nodes` selects it too."""
    static_tcp_rendezvous.StaticTCPRendezvous = NamedRendezvous  # type: ignore[misc]
    logging.getLogger("torch.distributed.run").addFilter(
        lambda record: "OMP_NUM_THREADS" not in record.getMessage()
    )
    return static_tcp_rendezvous.create_rdzv_handler
