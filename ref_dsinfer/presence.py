"""Who of the ranks is still there.

Where a rank is killed, a collective of the others fails and names a port, or on GPUs never returns.
So each rank keeps a connection to rank 0, on which nothing is said before it leaves or ends: one
that closes all the same is a rank that was killed. Rank 0 tells the others, and each of them ends.
"""

import os
import secrets
import selectors
import socket
import struct
import threading
import time
from collections.abc import Sequence
from typing import Protocol

import entrypoint
from errors import EngineError, LaunchError

HELLO = struct.Struct("!32sI")  # the meeting's secret, and who comes
NEWS = struct.Struct("!IB")  # of which rank, and what
LEFT, ENDED, KILLED = range(3)  # it has done its part; it has said why it ends; it has not
NOTICE_S = 5.0  # for a loss to be noticed after a collective has failed
QUIET_S = 3.0  # for the one rank of a machine that says why, before its others end
# A machine that says nothing any more is given up after three minutes.
KEEPALIVE = {socket.TCP_KEEPIDLE: 60, socket.TCP_KEEPINTVL: 20, socket.TCP_KEEPCNT: 6}


class Store(Protocol):
    """What is needed of torch's."""

    def set(self, key: str, value: str, /) -> None: ...
    def get(self, key: str, /) -> bytes: ...


class Presence:
    """The connections of one meeting. Their thread ends the process when a rank goes."""

    def __init__(
        self, rank: int, machine: range, names: Sequence[str], store: Store, wait_s: float
    ) -> None:
        """All ranks come here, after they have met in `store`.

        `machine`: the ranks of this machine; `names`: what to call each rank's process.
        Errors: LaunchError where not all come to rank 0 within `wait_s`.
        """
        self._rank, self._machine, self._names = rank, machine, names
        self._left = False
        self._lost = threading.Event()
        self._loss: EngineError | None = None
        self._others: dict[socket.socket, int] = {}
        try:
            if rank == 0:
                self._gather(store, wait_s)
            else:
                port, secret = store.get("presence").split()
                address = os.environ["MASTER_ADDR"], int(port)
                link = socket.create_connection(address, timeout=wait_s)
                link.sendall(HELLO.pack(secret, rank))
                self._others[link] = 0
        except OSError as error:
            raise LaunchError(
                f"rank {rank} can't connect with rank 0 at {os.environ['MASTER_ADDR']}: {error}; "
                "each machine must be able to reach every port of the first one"
            ) from error
        for link in self._others:
            link.settimeout(None)
            link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in KEEPALIVE.items():
                link.setsockopt(socket.IPPROTO_TCP, option, value)
        entrypoint.before_failing.append(self._fail)
        threading.Thread(target=self._watch, name="presence", daemon=True).start()

    def loss(self) -> EngineError | None:
        """What to say where a rank has gone, perhaps just now; None where all are there."""
        self._lost.wait(NOTICE_S)
        return self._loss

    def leave(self) -> None:
        """This rank has done its part, and may end."""
        self._left = True
        entrypoint.before_failing.remove(self._fail)
        self._tell(self._rank, LEFT)

    def _fail(self) -> None:
        """This rank has said why it ends, which it now does."""
        self._tell(self._rank, ENDED)

    def _gather(self, store: Store, wait_s: float) -> None:
        """Rank 0: listen where the others look for it, until all are there."""
        secret = secrets.token_hex(16).encode()
        with _listener(os.environ["MASTER_ADDR"]) as listener:
            listener.settimeout(wait_s)
            store.set("presence", f"{listener.getsockname()[1]} {secret.decode()}")
            while len(self._others) < len(self._names) - 1:
                link, _ = listener.accept()
                link.settimeout(wait_s)
                hello = link.recv(HELLO.size, socket.MSG_WAITALL)
                if len(hello) == HELLO.size and HELLO.unpack(hello)[0] == secret:
                    self._others[link] = HELLO.unpack(hello)[1]
                else:
                    link.close()  # a stranger

    def _watch(self) -> None:
        """In a thread of its own: wait for what the connections tell, and for them to close."""
        with selectors.DefaultSelector() as selector:
            for link in self._others:
                selector.register(link, selectors.EVENT_READ)
            while selector.get_map():
                for key, _ in selector.select():
                    assert isinstance(key.fileobj, socket.socket)
                    rank, what = self._heard(key.fileobj)
                    if what == LEFT or self._left:
                        selector.unregister(key.fileobj)
                    else:
                        self._end(rank, what)

    def _heard(self, link: socket.socket) -> tuple[int, int]:
        """News of a rank."""
        try:
            said = link.recv(NEWS.size, socket.MSG_WAITALL)
        except OSError:
            said = b""
        if len(said) < NEWS.size:
            return self._others[link], KILLED
        rank, what = NEWS.unpack(said)
        return rank, what

    def _end(self, rank: int, what: int) -> None:
        """End this process, since a rank has gone.

        On each machine one rank says why, the first of those that are left; where the other has
        done so on this machine, nobody.
        """
        name = f"rank {rank} of {len(self._names)} ({self._names[rank]})"
        if what == ENDED:
            self._loss = EngineError(f"{name} has ended: what it printed says why")
        else:
            self._loss = EngineError(
                f"{name} is gone without a word: it crashed, or was killed, perhaps by the kernel"
                " for want of memory (dmesg tells)"
            )
        self._lost.set()
        self._tell(rank, what)
        first = next(one for one in self._machine if one != rank)
        if self._rank == first and not (what == ENDED and rank in self._machine):
            entrypoint.fail(self._loss)
        time.sleep(QUIET_S)
        os._exit(EngineError.exit_code)

    def _tell(self, rank: int, what: int) -> None:
        for link in self._others:
            try:
                link.sendall(NEWS.pack(rank, what))
            except OSError:
                continue  # it has gone too


def _listener(address: str) -> socket.socket:
    """On a free port of this address; where it is another's, which passes on to us, of all."""
    for family, _, _, _, place in socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM):
        try:
            return socket.create_server((str(place[0]), 0), family=family)
        except OSError:
            continue
    return socket.create_server(("", 0))
