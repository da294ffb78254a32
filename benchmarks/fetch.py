"""Speed of data.fetch from a server on loopback, beside curl's from the same server.

    python benchmarks/fetch.py [--megabytes 146]

The limit is for curl and then md5sum or sha256sum as the peer, since a fetch compares every file
too. Beside curl alone, a fetch can't be faster than a core digests: 0.5 GB/s for MD5, which is
slower than loopback and faster than most networks.
"""

import argparse
import hashlib
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":  # the packages of this tree, and none of the files beside this one
    sys.path[0] = str(Path(__file__).parents[1])

from data.fetch.download import Patience, Remote, download_all, partial_of
from data.fetch.sink import Digest

MEGABYTES = 146  # of the official data set
FILES = 4  # that are fetched at once, as of a model
SHARE = 0.9  # of the peer's speed, at least
ROUNDS = 5  # in turns; the least time is taken


class Figure(NamedTuple):
    """One measured value."""

    name: str
    value: float
    unit: str
    limit: float | None = None  # more than this is a failure
    peer: float | None = None  # what the peer took, in the same unit


class _Files(BaseHTTPRequestHandler):
    """Sends files of the working directory, from any byte on."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(Path(self.path[1:]).stat().st_size))
        self.end_headers()

    def do_GET(self) -> None:
        size = Path(self.path[1:]).stat().st_size
        first = int(self.headers.get("Range", "bytes=0-")[6:-1])
        self.send_response(206 if first else 200)
        self.send_header("Content-Length", str(size - first))
        if first:
            self.send_header("Content-Range", f"bytes {first}-{size - 1}/{size}")
        self.end_headers()
        with Path(self.path[1:]).open("rb") as file:
            self.connection.sendfile(file, first)

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


def fetching(folder: Path, megabytes: int = MEGABYTES) -> list[Figure]:
    """One file with MD5, as the data set; a half of it, as after a kill; several with SHA-256.

    Raises: subprocess.CalledProcessError if curl, md5sum or sha256sum fails.
    """
    (folder / "from").mkdir()
    (folder / "to").mkdir()
    names = [f"file{number}" for number in range(FILES)]
    for name in names:
        with (folder / "from" / name).open("wb") as file:
            for _ in range(megabytes):
                file.write(os.urandom(1_000_000))
    figures = []
    with _serving(folder / "from") as url:
        for title, files, algorithm, there in (
            ("one file", names[:1], "md5", 0.0),
            ("one file, half of it there", names[:1], "md5", 0.5),
            (f"{FILES} files at once", names, "sha256", 0.0),
        ):
            ours, plain, checked = _compare(folder, url, files, algorithm, there)
            figures += [
                Figure(
                    f"{title}, beside curl and {algorithm}sum", ours, "s", checked / SHARE, checked
                ),
                Figure(f"{title}, beside curl alone", ours, "s", None, plain),
            ]
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
    remotes = {to / name: Remote(f"{url}/{name}", digests[name]) for name in names}
    curl = ["curl", "--silent", "--fail", "--parallel", "--no-progress-meter", "--continue-at", "-"]
    for name in names:
        curl += ["--output", str(to / name), f"{url}/{name}"]

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


def main() -> None:
    """Measure, and print a line a figure; exit code 1 if one is over its limit."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=MEGABYTES, metavar="N")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = fetching(Path(folder), args.megabytes)
    for figure in figures:
        peer = figure.peer or 0
        over = figure.limit is not None and figure.value > figure.limit
        print(
            f"{figure.name:<55} {figure.value:6.3f} {figure.unit}, peer {peer:6.3f} {figure.unit},"
            f" {peer / figure.value:.2f} of its speed{', UNDER ' + str(SHARE) if over else ''}"
        )
    sys.exit(any(figure.limit is not None and figure.value > figure.limit for figure in figures))


if __name__ == "__main__":
    main()
