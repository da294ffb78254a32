"""Speed of data.fetch from a server on loopback, beside curl's from the same server.

From a server that sends 1 Gbit/s, the limit is for curl alone as the peer. From one that sends as
fast as loopback can, it is for curl and then md5sum or sha256sum, since a fetch compares every file
too: it can't be faster than a core digests, which is 0.5 GB/s for MD5.
"""

import hashlib
import multiprocessing
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.figures import Figure
from data.fetch.download import Patience, Remote, download_all, partial_of
from data.fetch.sink import Digest

FILES = 4  # that are fetched at once, as of a model
SHARE = 0.9  # of the peer's speed, at least
ROUNDS = 5  # in turns; the least time is taken
RATE = 125_000_000  # bytes/s of a response, if its path begins with SLOW
SLOW = "slow/"
SLICE = 1 << 20  # bytes between two waits


class _Files(BaseHTTPRequestHandler):
    """Sends files of the working directory, from any byte on, at full speed or at RATE."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = Path(self.path[1:].removeprefix(SLOW))
        size = path.stat().st_size
        first = int(self.headers.get("Range", "bytes=0-")[6:-1])
        self.send_response(206 if first else 200)
        self.send_header("Content-Length", str(size - first))
        if first:
            self.send_header("Content-Range", f"bytes {first}-{size - 1}/{size}")
        self.end_headers()
        with path.open("rb") as file:
            if SLOW not in self.path:
                self.connection.sendfile(file, first)
                return
            begun = time.monotonic()
            for at in range(first, size, SLICE):
                time.sleep(max(0, begun + (at - first) / RATE - time.monotonic()))
                self.connection.sendfile(file, at, min(SLICE, size - at))

    def log_message(self, *words: object) -> None:
        """Keep quiet."""


def _serve(folder: Path, port: Connection) -> None:
    os.chdir(folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Files)
    port.send(server.server_port)
    server.serve_forever()


@contextmanager
def _serving(folder: Path) -> Iterator[str]:
    """A server of a folder's files in a process of its own, and its address."""
    mine, its = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(folder, its))
    process.start()
    try:
        yield f"http://127.0.0.1:{mine.recv()}"
    finally:
        process.terminate()
        process.join()


def fetching(folder: Path, megabytes: float) -> list[Figure]:
    """One file with MD5, as the data set; half of one, as after a kill; several with SHA-256.

    Raises: subprocess.CalledProcessError if curl, md5sum or sha256sum fails.
    """
    (folder / "from").mkdir()
    (folder / "to").mkdir()
    names = [f"file{number}" for number in range(FILES)]
    for name in names:
        with (folder / "from" / name).open("wb") as file:
            for _ in range(round(megabytes)):
                file.write(os.urandom(1_000_000))
    figures = []
    with _serving(folder / "from") as url:
        for title, files, algorithm, there, slow in (
            ("one file", names[:1], "md5", 0.0, SLOW),
            ("half a file", names[:1], "md5", 0.5, SLOW),
            ("one file", names[:1], "md5", 0.0, ""),
            ("half a file", names[:1], "md5", 0.5, ""),
            (f"{FILES} files", names, "sha256", 0.0, ""),
        ):
            ours, plain, checked = _compare(folder, f"{url}/{slow}", files, algorithm, there)
            title += " at 1 Gbit/s" if slow else ""
            for peer, seconds, limited in (
                ("curl", plain, bool(slow)),
                (f"curl and {algorithm}sum", checked, not slow),
            ):
                limit = seconds / SHARE if limited else None
                figures.append(Figure(f"{title}, beside {peer}", ours, "s", limit, seconds))
    return figures


def _compare(
    folder: Path, url: str, names: Sequence[str], algorithm: str, there: float
) -> tuple[float, float, float]:
    """Least seconds of a fetch, of curl, and of curl with a comparison, in turns.

    `there`: the part of each file that an earlier download has left.
    """
    to = folder / "to"
    digests = {}
    for name in names:
        with (folder / "from" / name).open("rb") as file:
            value = hashlib.file_digest(file, algorithm).hexdigest()
        digests[name] = Digest(algorithm, value)
    remotes = {to / name: Remote(url + name, digests[name]) for name in names}
    curl = ["curl", "--silent", "--fail", "--parallel", "--no-progress-meter", "--continue-at", "-"]
    for name in names:
        curl += ["--output", str(to / name), url + name]

    def plain() -> None:
        subprocess.run(curl, check=True)

    def checked() -> None:
        plain()
        subprocess.run([f"{algorithm}sum", *map(str, remotes)], check=True, capture_output=True)

    def ours() -> None:
        download_all(remotes, None, Patience(), len(names))

    def seconds(act: Callable[[], None]) -> float:
        for name in names:
            (to / name).unlink(missing_ok=True)
            part = partial_of(to / name) if act is ours else to / name
            if there:
                content = (folder / "from" / name).read_bytes()
                part.write_bytes(content[: int(there * len(content))])
        os.sync()
        begun = time.perf_counter()
        act()
        return time.perf_counter() - begun

    rounds = [(seconds(ours), seconds(plain), seconds(checked)) for _ in range(ROUNDS)]
    first, second, third = (min(times) for times in zip(*rounds, strict=True))
    return first, second, third
