"""Notices a rank that is lost, and ends the others.

When a rank is killed, a collective of the others fails naming a port, or on GPUs never returns. So
each rank keeps a connection to rank 0 and sends nothing on it until it shuts down, fails or gets
SIGTERM: if it closes before that, the rank was killed. Rank 0 informs the others, and each of them
ends. torchrun sends SIGTERM to a machine's other ranks once one has ended; the reason of their end
is then still that one.
"""

import os
import secrets
import selectors
import signal
import socket
import struct
import threading
import time
from collections.abc import Sequence
from typing import Protocol

import entrypoint
from errors import EngineError, LaunchError

HELLO = struct.Struct("!32sI")  # the run's secret, and the rank that connects
NEWS = struct.Struct("!IB")  # a rank, and one of the following
# FAILED: it printed an error; KILLED: it could not; ENDED: by SIGTERM, as this rank will be
DONE, FAILED, KILLED, ENDED = range(4)
NOTICE_S = 5.0  # for a lost rank to be noticed after a collective has failed
SIGTERM_S = 1.0  # for one to be noticed after SIGTERM
QUIET_S = 3.0  # for the machine's one rank that prints an error, before its others end
PIPE_BYTES = 4096  # of a read of signals' numbers
# A machine that does not respond any more is given up after three minutes.
KEEPALIVE = {socket.TCP_KEEPIDLE: 60, socket.TCP_KEEPINTVL: 20, socket.TCP_KEEPCNT: 6}


class Store(Protocol):
    """The part of torch's store that is used here."""

    def set(self, key: str, value: str, /) -> None: ...
    def get(self, key: str, /) -> bytes: ...


class Presence:
    """This rank's connections. A thread watches them, and ends the process when a rank is lost."""

    def __init__(
        self,
        rank: int,
        machine: range,
        names: Sequence[str],
        store: Store,
        wait_s: float,
        address: str,
    ) -> None:
        """Every rank must call this, once all are registered in `store`.

        `machine`: the ranks of this machine; `names`: what messages call each rank's process;
        `address`: at which rank 0 listens, and at which this rank reaches it.
        Raises: LaunchError where not all ranks connect to rank 0 within `wait_s`.
        """
        self._rank, self._machine, self._names = rank, machine, names
        self._done = False
        self._lost = threading.Event()
        self._left = threading.Event()
        self._told = threading.Event()  # of a rank's loss, or of its SIGTERM
        self._error: EngineError | None = None
        self._ranks: dict[socket.socket, int] = {}  # that each connection leads to
        try:
            if rank == 0:
                self._accept_all(store, wait_s, address)
            else:
                port, secret = store.get("presence").split()
                link = socket.create_connection((address, int(port)), timeout=wait_s)
                link.sendall(HELLO.pack(secret, rank))
                self._ranks[link] = 0
        except OSError as error:
            raise LaunchError(
                f"rank {rank} can't connect to rank 0 at {address}: {error}; "
                "every machine must be able to reach all ports of the first one"
            ) from error
        for link in self._ranks:
            link.settimeout(None)
            link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in KEEPALIVE.items():
                link.setsockopt(socket.IPPROTO_TCP, option, value)
        entrypoint.before_failing.append(self._fail)
        entrypoint.causes_of_sigterm.append(self._cause)
        self._signals = _signals() if rank else None
        threading.Thread(target=self._watch, name="presence", daemon=True).start()

    def loss(self) -> EngineError | None:
        """The error to raise where a rank is lost, perhaps just now; None where none is."""
        self._lost.wait(NOTICE_S)
        return self._error

    def leave(self) -> None:
        """This rank is done; from now on it may end without being lost."""
        self._done = True
        entrypoint.before_failing.remove(self._fail)
        entrypoint.causes_of_sigterm.remove(self._cause)
        self._send(self._rank, DONE)

    @property
    def left(self) -> bool:
        """Whether rank 0 is done. On rank 0: whether all others are."""
        return self._left.is_set()

    def _fail(self, reason: str) -> None:
        """This rank has printed an error, and is about to end."""
        self._send(self._rank, FAILED)

    def _cause(self) -> EngineError | None:
        """The rank whose loss made torchrun send SIGTERM to this one; None where none did."""
        self._told.wait(SIGTERM_S)
        return self._error

    def _accept_all(self, store: Store, wait_s: float, address: str) -> None:
        """Rank 0: publish a port in `store`, and accept a connection from every other rank."""
        secret = secrets.token_hex(16).encode()
        with _listener(address) as listener:
            listener.settimeout(wait_s)
            store.set("presence", f"{listener.getsockname()[1]} {secret.decode()}")
            while len(self._ranks) < len(self._names) - 1:
                link, _ = listener.accept()
                link.settimeout(wait_s)
                hello = link.recv(HELLO.size, socket.MSG_WAITALL)
                if len(hello) == HELLO.size and HELLO.unpack(hello)[0] == secret:
                    self._ranks[link] = HELLO.unpack(hello)[1]
                else:
                    link.close()  # not one of this run's ranks

    def _watch(self) -> None:
        """In a thread of its own: wait for news on the connections, and for them to close."""
        with selectors.DefaultSelector() as selector:
            for link in [*self._ranks, *([self._signals] if self._signals else [])]:
                selector.register(link, selectors.EVENT_READ)
            links = set(self._ranks)
            while links:
                ready = {key.fileobj for key, _ in selector.select()}
                news = [(link, *self._receive(link)) for link in self._ranks if link in ready]
                # SIGTERM last: it may follow from another rank's loss
                for link, rank, event in sorted(news, key=lambda one: one[2]):
                    if event == DONE or self._done:
                        selector.unregister(link)
                        links.remove(link)
                    elif rank != self._rank:  # else rank 0 hears of its own error
                        self._end(rank, event)
                if self._signals in ready and signal.SIGTERM in self._signals.recv(PIPE_BYTES):
                    self._send(self._rank, ENDED)
                    os._exit(entrypoint.TERMINATED)
        self._left.set()

    def _receive(self, link: socket.socket) -> tuple[int, int]:
        """A rank, and what has become of it."""
        try:
            news = link.recv(NEWS.size, socket.MSG_WAITALL)
        except OSError:
            news = b""
        if len(news) < NEWS.size:
            return self._ranks[link], KILLED
        rank, event = NEWS.unpack(news)
        return rank, event

    def _end(self, rank: int, event: int) -> None:
        """End this process, because `rank` is lost.

        On each machine the first rank that is left prints the error, unless the lost rank has
        printed one on the same machine.
        """
        name = f"rank {rank} of {len(self._names)} ({self._names[rank]})"
        if event == ENDED:
            self._told.set()
            time.sleep(QUIET_S)  # this process usually gets SIGTERM too, and ends by that
            self._error = EngineError(f"{name} was ended by SIGTERM")
        elif event == FAILED:
            self._error = EngineError(f"{name} failed: see its own error message")
        else:
            self._error = EngineError(
                f"{name} died without an error message: it crashed or was killed, perhaps by the"
                " kernel's out-of-memory killer (see dmesg)"
            )
        self._told.set()
        self._lost.set()
        self._send(rank, event)
        first = min(set(self._machine) - {rank})
        if self._rank == first and not (event == FAILED and rank in self._machine):
            entrypoint.fail(self._error, despite_sigterm=event != ENDED)
        time.sleep(QUIET_S)
        entrypoint.fail(self._error, quiet=True, despite_sigterm=event != ENDED)

    def _send(self, rank: int, event: int) -> None:
        for link in self._ranks:
            try:
                link.sendall(NEWS.pack(rank, event))
            except OSError:
                continue  # that rank is lost too


def _signals() -> socket.socket | None:
    """Receives the numbers of this process's signals, though its main thread may be in native code,
    and keeps SIGTERM from ending it. None where something else handles SIGTERM."""
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        return None
    receiver, sender = socket.socketpair()
    sender.setblocking(False)
    signal.set_wakeup_fd(sender.detach(), warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    return receiver


def _listener(address: str) -> socket.socket:
    """Listens on a free port of `address`, or of all addresses where it is not this machine's own
    (a proxy's, say)."""
    for family, _, _, _, socket_address in socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM):
        try:
            return socket.create_server((str(socket_address[0]), 0), family=family)
        except OSError:
            continue
    return socket.create_server(("", 0))
