"""Makes torchrun on several machines name the nodes that are missing, and those that end too early.

It also keeps torchrun from warning that it sets OMP_NUM_THREADS to 1: the engine sets the number of
threads itself.

torchrun alone waits for 15 minutes without output and ends in a traceback, before any script of
ours runs; and a node that ends leaves the others waiting. setup.sh copies this directory into the
environments, where torchrun finds `handler` by its entry point. torchrun's static rendezvous is
then preceded by one that knows the nodes' numbers.

The nodes stay connected to node 0. A node that has done its part says so; if its connection closes
before that, the others end their ranks, after these had time to report what has happened.
"""

import contextlib
import logging
import os
import secrets
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import NoReturn

from torch.distributed import DistError, PrefixStore, Store, TCPStore
from torch.distributed.elastic.rendezvous import RendezvousInfo, static_tcp_rendezvous

WARN_AFTER_S = 20  # of waiting, before the missing nodes are printed
TORCHRUN_TIMEOUT_S, TIMEOUT_S = 900, 300  # torchrun's default, and what replaces it
POLL_S = 0.2
EXIT_CODE = 10  # as of errors.LaunchError
REPORT_S = 8  # for ranks to report the loss of a rank, which says more than that of a node
END_S = 15  # for torchrun to end its ranks; if it is stuck, they end when it does
DONE = b"."  # sent by a node that has done its part; node 0 may send a lost node's name instead
# A machine that does not respond any more is given up after three minutes.
KEEPALIVE = {socket.TCP_KEEPIDLE: 60, socket.TCP_KEEPINTVL: 20, socket.TCP_KEEPCNT: 6}


class NamedRendezvous(static_tcp_rendezvous.StaticTCPRendezvous):
    """Waits for the other nodes before torchrun's rendezvous; exits if some don't join in time."""

    def next_rendezvous(self) -> RendezvousInfo:
        if self.world_size > 1 and not self._store:
            self._store = self._join()
            self._stay_connected(PrefixStore(self.run_id, self._store))
        return super().next_rendezvous()

    def shutdown(self) -> bool:
        """torchrun calls it at its end, but not after a signal."""
        if self.world_size > 1 and sys.exc_info()[0] is None:  # else its ranks have failed
            for link in self._links:
                with contextlib.suppress(OSError):
                    link.sendall(DONE)
        return super().shutdown()

    def _stay_connected(self, store: Store) -> None:
        """Connect to node 0, or as node 0 to all others, and watch these connections."""
        self._links: dict[socket.socket, str] = {}  # and the node that each leads to
        store.set(f"host/{self.rank}", socket.gethostname())
        others = range(1, self.world_size) if self.rank == 0 else [0]
        nodes = [node for node in others if store.check([f"node/{node}"])]  # that have this module
        try:
            if self.rank and nodes:
                port, secret = store.get("watch").decode().split()
                link = socket.create_connection((self.master_addr, int(port)), TIMEOUT_S)
                link.sendall(f"{secret} {self.rank:08}".encode())
                self._add_link(link, 0, store)
            elif nodes:
                self._accept_all(nodes, store)
        except OSError as error:
            self._fail(
                f"the nodes can't connect to node 0 at {self.master_addr}: {error}; every machine"
                " must be able to reach all ports of the first one"
            )
        threading.Thread(target=self._watch, daemon=True).start()

    def _accept_all(self, nodes: Sequence[int], store: Store) -> None:
        secret = secrets.token_hex(16)
        with socket.create_server(("", 0)) as listener:
            listener.settimeout(TIMEOUT_S)
            store.set("watch", f"{listener.getsockname()[1]} {secret}")
            while len(self._links) < len(nodes):
                link, _ = listener.accept()
                link.settimeout(TIMEOUT_S)
                hello = link.recv(len(secret) + 9, socket.MSG_WAITALL).decode(errors="replace")
                if hello.startswith(f"{secret} "):
                    self._add_link(link, int(hello.split()[1]), store)
                else:
                    link.close()  # not one of this run's nodes

    def _add_link(self, link: socket.socket, node: int, store: Store) -> None:
        link.settimeout(None)
        link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEPALIVE.items():
            link.setsockopt(socket.IPPROTO_TCP, option, value)
        self._links[link] = f"node {node} ({store.get(f'host/{node}').decode()})"

    def _watch(self) -> None:
        """In a thread of its own: wait for nodes to end."""
        with selectors.DefaultSelector() as selector:
            for link in self._links:
                selector.register(link, selectors.EVENT_READ)
            while selector.get_map():
                for key, _ in selector.select():
                    assert isinstance(key.fileobj, socket.socket)
                    try:
                        message = key.fileobj.recv(1024)
                    except OSError:
                        message = b""
                    selector.unregister(key.fileobj)
                    if message != DONE:
                        self._end(message.decode() or self._links[key.fileobj])

    def _end(self, lost: str) -> None:
        """End this node, because another is lost; torchrun ends its ranks at SIGTERM."""
        if self.rank == 0:
            for link in self._links:
                with contextlib.suppress(OSError):
                    link.sendall(lost.encode())
        time.sleep(REPORT_S)
        self._print(f"{lost} has ended before its part was done: see its output; ending this one")
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(END_S)
        os._exit(EXIT_CODE)

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
